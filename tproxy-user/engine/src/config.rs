//! What a user asked for, checked: the one structure behind flags and file.

mod check;
mod draft;
#[cfg(feature = "flags")]
mod flags;
mod listed;
mod path;
mod print;
mod read;
mod remarks;
mod remedy;
mod rule;
mod upstream;
mod values;

use std::{net::SocketAddr, sync::Arc, time::Duration};

pub(crate) use check::{Complaint, Form, check, default_sessions};
#[cfg(feature = "flags")]
#[doc(hidden)]
pub use flags::{Flags, Mistakes};
pub use listed::{Listed, NamedSet};
#[doc(hidden)]
pub use print::schema;
#[doc(hidden)]
pub use read::files;
pub use read::{Errors, load, parse};
#[doc(hidden)]
pub use rule::Claim;
pub use rule::{
    Accept, Action, Nat, Protocols, Reach, Rule, RuleEgress, RuleLimits, RuleTimeouts, Selector, Source,
    Treatment,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tproxy_common::defaults::{self, CONNECTIONS, SESSIONS, SHARES};
pub use tproxy_common::rule::Scope;
pub use upstream::{Check, Credentials, Host, Pick, Scheme, Upstream, UpstreamGroup, UpstreamServer};

use crate::{
    host::{Identity, InstanceName},
    mark::Mark,
};
#[cfg(feature = "flags")]
use values::Text as _;

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
    /// Names of groups of upstreams that no rule names.
    pub unused_upstreams: Vec<Arc<str>>,
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
            sessions: SessionLimits { total: SESSIONS, per_client: SESSIONS / SHARES },
            unused_sets: Vec::new(),
            unused_upstreams: Vec::new(),
            connections: ConnectionLimits { total: CONNECTIONS, per_client: CONNECTIONS / SHARES },
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

/// How tc hands a packet to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "flags", derive(clap::ValueEnum))]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "flags", value(rename_all = "snake_case"))]
pub enum Steer {
    /// tc marks the packet, and the sk_lookup program picks the listener.
    #[default]
    SkLookup,
    /// tc marks the packet, and assigns the socket itself with bpf_sk_assign.
    SkAssign,
}

/// What flows that a rule selects meet while the instance stops, and when the process is gone, however it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "flags", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum OnExit {
    /// They go their own way, and the host is as it was.
    #[default]
    Pass,
    /// They are rejected (RST, or ICMP port unreachable), until a start takes over or `tproxy cleanup`; from Linux 6.6.
    Reject,
}

/// Time limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "flags", derive(clap::Args))]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// How long an upstream may take to accept a connection
    #[cfg_attr(
        feature = "flags",
        arg(long = "connect-timeout", value_name = "TIME", default_value = "10s", value_parser = Duration::parse)
    )]
    #[serde(with = "values::text")]
    #[schemars(schema_with = "values::schema::<Duration>")]
    pub connect: Duration,
    /// How long a connection may carry no byte (RFC 5382 asks a NAT for at least 2h4m)
    #[cfg_attr(
        feature = "flags",
        arg(long = "idle-timeout", value_name = "TIME", default_value = "2h4m", value_parser = Duration::parse)
    )]
    #[serde(with = "values::text")]
    #[schemars(schema_with = "values::schema::<Duration>")]
    pub idle: Duration,
    /// How long live connections may go on after SIGINT or SIGTERM; a second signal ends them at once
    #[cfg_attr(
        feature = "flags",
        arg(long = "drain-timeout", value_name = "TIME", default_value = "30s", value_parser = Duration::parse)
    )]
    #[serde(with = "values::text")]
    #[schemars(schema_with = "values::schema::<Duration>")]
    pub drain: Duration,
    /// How long a UDP session may carry no datagram, as long as only one side has sent
    #[cfg_attr(
        feature = "flags",
        arg(long = "udp-timeout", value_name = "TIME", default_value = "30s", value_parser = Duration::parse)
    )]
    #[serde(with = "values::text")]
    #[schemars(schema_with = "values::schema::<Duration>")]
    pub udp: Duration,
    /// How long a UDP session may carry no datagram, once both sides have sent
    #[cfg_attr(
        feature = "flags",
        arg(long = "udp-stream-timeout", value_name = "TIME", default_value = "2m", value_parser = Duration::parse)
    )]
    #[serde(with = "values::text")]
    #[schemars(schema_with = "values::schema::<Duration>")]
    pub udp_stream: Duration,
    /// After which silence both ends of a connection are asked whether they are still there; the upstream as often as the
    /// client asks, if that is more often
    #[cfg_attr(
        feature = "flags",
        arg(long = "keepalive", value_name = "TIME", default_value = "1m", value_parser = Duration::parse)
    )]
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
        let seconds = Duration::from_secs;
        Self {
            connect: seconds(defaults::CONNECT),
            idle: seconds(defaults::IDLE),
            drain: seconds(defaults::DRAIN),
            udp: seconds(defaults::UDP),
            udp_stream: seconds(defaults::UDP_STREAM),
            keepalive: seconds(defaults::KEEPALIVE),
        }
    }
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
