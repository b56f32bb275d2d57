//! One rule: which flows it selects, and how they are treated.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    ops::RangeInclusive,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tproxy_common::{flow::Protocol, rule::Scope};

use super::{Listed, Upstream, values};
use crate::{flow::OriginalDst, intercept::Taker, mark::Bits};

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Shown in logs and counters.
    pub name: Arc<str>,
    /// Which flows it is about.
    pub selector: Selector,
    /// What becomes of them.
    pub treatment: Treatment,
}

impl Rule {
    /// A rule of this name. A scope alone selects all flows of it, and an action alone leaves the rest to defaults.
    #[must_use]
    pub fn new(name: &str, selector: impl Into<Selector>, treatment: impl Into<Treatment>) -> Self {
        Self { name: name.into(), selector: selector.into(), treatment: treatment.into() }
    }
}

/// Which flows a rule selects: those that match all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// Which traffic the rule looks at.
    pub reach: Reach,
    /// Source prefixes; none listed means any.
    pub from: Listed<IpNet>,
    /// Destination prefixes; none listed means any.
    pub to: Listed<IpNet>,
    /// Destination prefixes the rule leaves out.
    pub except: Listed<IpNet>,
    /// Destination ports, inclusive ranges; none listed means any.
    pub ports: Listed<RangeInclusive<u16>>,
    /// Sender's user id (scope `outbound`); empty means any.
    pub uids: Vec<u32>,
    /// Sender's cgroup v2 directory, which includes those below it (scope `outbound`); empty means any.
    pub cgroups: Vec<PathBuf>,
}

impl From<Reach> for Selector {
    /// All flows of it.
    fn from(reach: Reach) -> Self {
        Self {
            reach,
            from: Listed::default(),
            to: Listed::default(),
            except: Listed::default(),
            ports: Listed::default(),
            uids: vec![],
            cgroups: vec![],
        }
    }
}

impl From<Scope> for Selector {
    /// All flows of it.
    fn from(scope: Scope) -> Self {
        Reach::from(scope).into()
    }
}

/// Which traffic a rule looks at, and so where the datapath has to see packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// Of which way.
    pub scope: Scope,
    /// Of which protocols.
    pub protocols: Protocols,
    /// Of which interfaces, by name; empty means the scope's default.
    pub interfaces: Vec<String>,
}

impl From<Scope> for Reach {
    /// Both protocols, the scope's own interfaces.
    fn from(scope: Scope) -> Self {
        Self { scope, protocols: Protocols::default(), interfaces: vec![] }
    }
}

/// How the flows that a rule selects are treated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Treatment {
    /// What becomes of a flow.
    pub action: Action,
    /// Whose address the upstream sees.
    pub source: Source,
    /// By which way what is relayed leaves, if not by the client's own.
    pub egress: RuleEgress,
    /// Which upstream socket a UDP datagram leaves by.
    pub nat: Nat,
    /// When TCP connections are accepted.
    pub accept: Accept,
    /// Time limits of its connections, in place of the instance's.
    pub timeouts: RuleTimeouts,
    /// How much of it there may be at once.
    pub limits: RuleLimits,
}

impl Treatment {
    /// Whether upstream sockets bear the client's address.
    #[must_use]
    pub const fn is_spoofed(&self) -> bool {
        !matches!(self.source, Source::Host) && self.action.connects()
    }
}

impl From<Action> for Treatment {
    fn from(action: Action) -> Self {
        Self {
            action,
            source: Source::default(),
            egress: RuleEgress::default(),
            nat: Nat::default(),
            accept: Accept::default(),
            timeouts: RuleTimeouts::default(),
            limits: RuleLimits::default(),
        }
    }
}

/// What a rule asks of the host, whichever values it selects by: as long as it has flows.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    pub(crate) reach: &'a Reach,
    pub(crate) treatment: &'a Treatment,
}

impl Claim<'_> {
    /// Whether first packets of its connections may be held until their upstreams are connected.
    #[must_use]
    pub(crate) fn may_hold(self) -> bool {
        let Treatment { action, accept, .. } = self.treatment;
        let held = match accept {
            Accept::Auto => *action == Action::Direct,
            Accept::AtOnce => false,
            Accept::AfterConnect => action.connects(),
        };
        held && self.reach.protocols.include(Protocol::Tcp)
    }
}

impl<'a> From<&'a Rule> for Claim<'a> {
    fn from(rule: &'a Rule) -> Self {
        Self { reach: &rule.selector.reach, treatment: &rule.treatment }
    }
}

/// The protocols of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "flags", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Protocols {
    /// TCP only.
    Tcp,
    /// UDP only.
    Udp,
    /// TCP and UDP.
    #[default]
    Both,
}

impl Protocols {
    /// Whether `protocol` is one of them.
    #[must_use]
    pub const fn include(self, protocol: Protocol) -> bool {
        match self {
            Self::Tcp => matches!(protocol, Protocol::Tcp),
            Self::Udp => matches!(protocol, Protocol::Udp),
            Self::Both => true,
        }
    }
}

/// How a client's UDP endpoint is mapped to upstream sockets, in the words of RFC 4787, 4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "flags", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Nat {
    /// One for each client address and port, whatever the destination: every peer sees the same endpoint, and whoever
    /// sends to that endpoint reaches the client.
    #[default]
    EndpointIndependent,
    /// One for each client address and port and each destination, which alone may answer.
    PerDestination,
}

/// When a TCP client's connection is accepted, where it is relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "flags", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Accept {
    /// `direct`: after the upstream is connected, unless the destination was reached within the last minute, or NAT of this
    /// host may change it; then, and in all other cases, at once.
    #[default]
    Auto,
    /// At once; a client whose upstream cannot be connected is reset.
    AtOnce,
    /// After the upstream is connected; what the upstream refuses is refused.
    AfterConnect,
}

/// What becomes of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Intercept, and connect to the original destination.
    Direct,
    /// Intercept, and connect there.
    Upstream(Upstream),
    /// Intercept, and answer with this text.
    Respond(Arc<str>),
    /// Intercept, and hand the flow over to other code of this process.
    HandOver(Taker),
    /// Refuse: RST for TCP, ICMP port unreachable for UDP.
    Reject,
    /// Discard silently.
    Drop,
    /// Leave alone.
    Pass,
}

impl Action {
    /// Whether a flow is relayed to an upstream.
    #[must_use]
    pub const fn connects(&self) -> bool {
        matches!(self, Self::Direct | Self::Upstream(_))
    }

    /// Where a flow is relayed to that goes by no group of servers: the address that is given, or the original destination.
    pub(crate) fn peer(&self, dst: OriginalDst) -> SocketAddr {
        match self {
            Self::Upstream(Upstream::Address(address)) => *address,
            _ => dst.0,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::Upstream(upstream) => write!(f, "upstream={upstream}"),
            Self::Respond(_) => f.write_str("respond"),
            Self::HandOver(_) => f.write_str("hand over"),
            Self::Reject => f.write_str("reject"),
            Self::Drop => f.write_str("drop"),
            Self::Pass => f.write_str("pass"),
        }
    }
}

/// Whose address the upstream sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "flags", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// This host's own address.
    #[default]
    Host,
    /// The client's IP address, a port of the kernel's choice.
    Client,
    /// The client's IP address and port; another port, counted, when that one is taken.
    ClientPort,
}

/// A rule's own time limits; where there is none, that of the instance holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RuleTimeouts {
    /// How long an upstream may take to accept a connection
    #[serde(with = "values::optional_text", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "values::schema::<Duration>")]
    pub connect: Option<Duration>,
    /// How long a connection may carry no byte
    #[serde(with = "values::optional_text", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "values::schema::<Duration>")]
    pub idle: Option<Duration>,
    /// After which silence both ends of a connection are asked whether they are still there
    #[serde(with = "values::optional_text", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "values::schema::<Duration>")]
    pub keepalive: Option<Duration>,
}

/// By which way what is relayed leaves, in place of the one of the client's own packets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "flags", derive(clap::Args))]
#[serde(default, deny_unknown_fields)]
pub struct RuleEgress {
    /// The interface by which what is relayed leaves (direct and upstream=; default: that of the client's own packets)
    #[cfg_attr(
        feature = "flags",
        arg(id = "egress_interface", long = "egress-interface", value_name = "NAME")
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub interface: Option<String>,
    /// Bits of the mark of what is relayed, by which routing rules of others go (direct and upstream=)
    #[cfg_attr(
        feature = "flags",
        arg(id = "egress_mark", long = "egress-mark", value_name = "VALUE/MASK", value_parser = <Bits as values::Text>::parse)
    )]
    #[serde(with = "values::optional_text", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "values::schema::<Bits>")]
    pub mark: Option<Bits>,
    /// The address of this host that the upstream sees, where it is of its family (direct and upstream=)
    #[cfg_attr(
        feature = "flags",
        arg(id = "egress_source", long = "egress-source", value_name = "ADDR", value_parser = <IpAddr as values::Text>::parse)
    )]
    #[serde(with = "values::optional_text", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "values::schema::<IpAddr>")]
    pub source: Option<IpAddr>,
}

impl RuleEgress {
    /// Whether it says which way, and not only from where.
    #[must_use]
    pub const fn chooses(&self) -> bool {
        self.interface.is_some() || self.mark.is_some()
    }
}

/// How much of a rule there may be at once; nothing set means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RuleLimits {
    /// Most live TCP connections, over all workers; one more is reset and counted
    #[serde(deserialize_with = "values::positive", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "NonZeroUsize")]
    pub connections: Option<NonZeroUsize>,
    /// How many times as long as its question an answer of respond= may be over UDP, headers included; a longer one is not
    /// given, since a forged question would have it sent to somebody else (default: 3)
    #[serde(deserialize_with = "values::positive", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "NonZeroUsize")]
    pub amplification: Option<NonZeroUsize>,
}
