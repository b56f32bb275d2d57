//! What a user asked for, checked: the one structure behind flags and file.

mod check;
mod draft;
mod flags;
mod listed;
mod path;
mod print;
mod read;
mod remarks;
mod remedy;
mod values;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    ops::RangeInclusive,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

pub(crate) use check::{Complaint, Form, check, default_sessions};
pub(crate) use draft::{Draft, DraftRule};
#[doc(hidden)]
pub use flags::{Flags, Mistakes};
use ipnet::IpNet;
pub use listed::{Listed, NamedSet};
#[doc(hidden)]
pub use print::schema;
#[doc(hidden)]
pub use read::files;
pub use read::{Errors, load, parse};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tproxy_common::flow::Protocol;
pub use tproxy_common::rule::Scope;

use crate::{
    host::{Identity, InstanceName},
    intercept::Taker,
    mark::{Bits, Mark},
};
use values::Text;

/// Everything one instance of `tproxy run` needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What the instance is called, if not what [`InstanceName::of_this_namespace`] says.
    pub name: Option<InstanceName>,
    /// Where metrics are served, besides at the control socket.
    pub metrics: Option<SocketAddr>,
    /// Rules in the order in which they are tried; the first match wins.
    pub rules: Vec<Rule>,
    /// The `skb->mark` bits this instance owns.
    pub mark: Mark,
    /// Number of the policy-routing table this instance owns.
    pub table: u32,
    /// Preference of its `ip rule`s; one preference serves all of them.
    pub priority: u32,
    /// How tc hands a packet to a socket.
    pub steer: Steer,
    /// What flows that a rule selects meet when nobody is there to take them.
    pub on_exit: OnExit,
    /// What is done about firewalls that discard what is steered; `tproxy run` does it.
    pub firewall: Firewall,
    /// Worker threads, each with its own listeners and runtime.
    pub workers: usize,
    /// Time limits of connections, UDP sessions, and of the stop.
    pub timeouts: Timeouts,
    /// How many UDP sessions there may be.
    pub sessions: SessionLimits,
    /// Names of sets that no rule names.
    pub unused_sets: Vec<Arc<str>>,
    /// How many TCP connections there may be.
    pub connections: ConnectionLimits,
}

impl Config {
    /// What an instance is called that the calling thread starts by this.
    #[must_use]
    pub fn instance_name(&self) -> InstanceName {
        self.name.clone().unwrap_or_else(|| InstanceName::of_this_namespace(self.mark))
    }

    /// These rules, and for the rest what `tproxy run` has where nothing is given.
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        let Identity { mark, table, priority } = Identity::DEFAULT;
        Self {
            name: None,
            metrics: None,
            rules,
            mark,
            table,
            priority,
            steer: Steer::default(),
            on_exit: OnExit::default(),
            firewall: Firewall::default(),
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            timeouts: Timeouts::default(),
            sessions: SessionLimits { total: 16_384, per_client: 4096 },
            unused_sets: Vec::new(),
            connections: ConnectionLimits { total: 32_768, per_client: 8192 },
        }
    }
}

/// What is done about firewalls of this host that discard what is steered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Firewall {
    /// That is said, and what to do.
    #[default]
    LeftAlone,
    /// Rules are added to them that accept it, by its mark.
    Opened,
}

impl From<bool> for Firewall {
    fn from(admit: bool) -> Self {
        if admit { Self::Opened } else { Self::LeftAlone }
    }
}

/// One rule: which flows, and what becomes of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Shown in logs and counters.
    pub name: Arc<str>,
    /// Which traffic the rule looks at.
    pub scope: Scope,
    /// Which protocols it is about.
    pub protocols: Protocols,
    /// Interfaces by name; empty means the scope's default.
    pub interfaces: Vec<String>,
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
    /// What becomes of a flow that the rule selects.
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

impl Rule {
    /// A rule for every flow of a scope.
    #[must_use]
    pub fn new(name: &str, scope: Scope, action: Action) -> Self {
        Self {
            name: name.into(),
            scope,
            protocols: Protocols::default(),
            interfaces: vec![],
            from: Listed::default(),
            to: Listed::default(),
            except: Listed::default(),
            ports: Listed::default(),
            uids: vec![],
            cgroups: vec![],
            action,
            source: Source::default(),
            egress: RuleEgress::default(),
            nat: Nat::default(),
            accept: Accept::default(),
            timeouts: RuleTimeouts::default(),
            limits: RuleLimits::default(),
        }
    }

    /// Whether first packets of its connections may be held until their upstreams are connected. In scope `inbound` no
    /// program sees them whole.
    #[must_use]
    pub(crate) fn may_hold(&self) -> bool {
        let held = match self.accept {
            Accept::Auto => self.action == Action::Direct,
            Accept::AtOnce => false,
            Accept::AfterConnect => matches!(self.action, Action::Direct | Action::Upstream(_)),
        };
        held && self.protocols.include(Protocol::Tcp) && self.scope != Scope::Inbound
    }

    /// Whether its upstream sockets bear the client's address.
    #[must_use]
    pub fn is_spoofed(&self) -> bool {
        self.source != Source::Host && matches!(self.action, Action::Direct | Action::Upstream(_))
    }
}

/// The protocols of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize, JsonSchema)]
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
    /// Intercept, and connect to this address.
    Upstream(SocketAddr),
    /// Intercept, and answer with this text.
    Respond(Arc<str>),
    /// Intercept, and hand the connection over to other code of this process; TCP only.
    HandOver(Taker),
    /// Refuse: RST for TCP, ICMP port unreachable for UDP.
    Reject,
    /// Discard silently.
    Drop,
    /// Leave alone.
    Pass,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::Upstream(addr) => write!(f, "upstream={addr}"),
            Self::Respond(_) => f.write_str("respond"),
            Self::HandOver(_) => f.write_str("hand over"),
            Self::Reject => f.write_str("reject"),
            Self::Drop => f.write_str("drop"),
            Self::Pass => f.write_str("pass"),
        }
    }
}

/// Whose address the upstream sees.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, clap::ValueEnum, Serialize, Deserialize, JsonSchema,
)]
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

/// How tc hands a packet to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Steer {
    /// tc marks the packet, and the sk_lookup program picks the listener.
    #[default]
    SkLookup,
    /// tc marks the packet, and assigns the socket itself with bpf_sk_assign.
    SkAssign,
}

/// What flows that a rule selects meet while the instance stops, and when the process is gone, however it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnExit {
    /// They go their own way, and the host is as it was.
    #[default]
    Pass,
    /// They are rejected (RST, or ICMP port unreachable), until a start takes over or `tproxy cleanup`; from Linux 6.6.
    Reject,
}

/// Time limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// How long an upstream may take to accept a connection
    #[arg(long = "connect-timeout", value_name = "TIME", default_value = "10s", value_parser = Duration::parse)]
    #[serde(with = "values::text")]
    #[schemars(schema_with = "values::schema::<Duration>")]
    pub connect: Duration,
    /// How long a connection may carry no byte (RFC 5382 asks a NAT for at least 2h4m)
    #[arg(long = "idle-timeout", value_name = "TIME", default_value = "2h4m", value_parser = Duration::parse)]
    #[serde(with = "values::text")]
    #[schemars(schema_with = "values::schema::<Duration>")]
    pub idle: Duration,
    /// How long live connections may go on after SIGINT or SIGTERM; a second signal ends them at once
    #[arg(long = "drain-timeout", value_name = "TIME", default_value = "30s", value_parser = Duration::parse)]
    #[serde(with = "values::text")]
    #[schemars(schema_with = "values::schema::<Duration>")]
    pub drain: Duration,
    /// How long a UDP session may carry no datagram, as long as only one side has sent
    #[arg(long = "udp-timeout", value_name = "TIME", default_value = "30s", value_parser = Duration::parse)]
    #[serde(with = "values::text")]
    #[schemars(schema_with = "values::schema::<Duration>")]
    pub udp: Duration,
    /// How long a UDP session may carry no datagram, once both sides have sent
    #[arg(long = "udp-stream-timeout", value_name = "TIME", default_value = "2m", value_parser = Duration::parse)]
    #[serde(with = "values::text")]
    #[schemars(schema_with = "values::schema::<Duration>")]
    pub udp_stream: Duration,
    /// After which silence both ends of a connection are asked whether they are still there; the upstream as often as the
    /// client asks, if that is more often
    #[arg(long = "keepalive", value_name = "TIME", default_value = "1m", value_parser = Duration::parse)]
    #[serde(with = "values::text")]
    #[schemars(schema_with = "values::schema::<Duration>")]
    pub keepalive: Duration,
}

#[cfg(test)]
impl Timeouts {
    /// The same time for all.
    pub(crate) const fn all(time: Duration) -> Self {
        Self { connect: time, idle: time, drain: time, udp: time, udp_stream: time, keepalive: time }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        Self {
            connect: Duration::from_secs(10),
            idle: minutes(124),
            drain: Duration::from_secs(30),
            udp: Duration::from_secs(30),
            udp_stream: minutes(2),
            keepalive: minutes(1),
        }
    }
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
#[derive(Debug, Clone, PartialEq, Eq, Default, clap::Args, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RuleEgress {
    /// The interface by which what is relayed leaves (direct and upstream=; default: that of the client's own packets)
    #[arg(id = "egress_interface", long = "egress-interface", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub interface: Option<String>,
    /// Bits of the mark of what is relayed, by which routing rules of others go (direct and upstream=)
    #[arg(id = "egress_mark", long = "egress-mark", value_name = "VALUE/MASK", value_parser = <Bits as Text>::parse)]
    #[serde(with = "values::optional_text", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "values::schema::<Bits>")]
    pub mark: Option<Bits>,
    /// The address of this host that the upstream sees, where it is of its family (direct and upstream=)
    #[arg(id = "egress_source", long = "egress-source", value_name = "ADDR", value_parser = <IpAddr as Text>::parse)]
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
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "NonZeroUsize")]
    pub connections: Option<NonZeroUsize>,
    /// How many times as long as its question an answer of respond= may be over UDP, headers included; a longer one is not
    /// given, since a forged question would have it sent to somebody else (default: 3)
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "NonZeroUsize")]
    pub amplification: Option<NonZeroUsize>,
}

/// How many TCP connections there may be at once. Each takes two descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// In all.
    pub total: usize,
    /// Of one client: an address, or a /64 of IPv6. In scope `outbound` this host is the only one, and may have all.
    pub per_client: usize,
}

/// How many UDP sessions there may be at once. Each takes at most two descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// In all.
    pub total: usize,
    /// Of one client: an address, or a /64 of IPv6.
    pub per_client: usize,
}

#[cfg(test)]
mod tests;
