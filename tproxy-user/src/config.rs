//! What a user asked for, checked: the one structure behind flags (and, later, the file).

use std::{fmt, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use ipnet::IpNet;
use tproxy_common::flow::Protocol;
pub use tproxy_common::rule::Scope;

use crate::{host::Identity, intercept::Taker, mark::Mark};

/// Everything one instance of `tproxy run` needs to know.
#[derive(Debug, Clone)]
pub struct Config {
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
    /// Worker threads, each with its own listeners and runtime.
    pub workers: usize,
    /// Time limits of connections, UDP sessions, and of the stop.
    pub timeouts: Timeouts,
    /// How many UDP sessions there may be.
    pub sessions: SessionLimits,
}

impl Config {
    /// These rules, and for the rest what `tproxy run` has where nothing is given.
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        let Identity { mark, table, priority } = Identity::DEFAULT;
        Self {
            rules,
            mark,
            table,
            priority,
            steer: Steer::default(),
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            timeouts: Timeouts {
                connect: Duration::from_secs(10),
                idle: minutes(124),
                drain: Duration::from_secs(30),
                udp: Duration::from_secs(30),
                udp_stream: minutes(2),
            },
            sessions: SessionLimits { total: 16_384, per_client: 4096 },
        }
    }
}

/// One rule: which flows, and what becomes of them.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Shown in logs and counters.
    pub name: Arc<str>,
    /// Which traffic the rule looks at.
    pub scope: Scope,
    /// Which protocols it is about.
    pub protocols: Protocols,
    /// Interfaces by name; empty means the scope's default.
    pub interfaces: Vec<String>,
    /// Source prefixes; empty means any.
    pub from: Vec<IpNet>,
    /// Destination prefixes; empty means any.
    pub to: Vec<IpNet>,
    /// Destination prefixes the rule leaves out.
    pub except: Vec<IpNet>,
    /// Destination ports, inclusive ranges; empty means any.
    pub ports: Vec<std::ops::RangeInclusive<u16>>,
    /// Sender's user id (scope `outbound`); empty means any.
    pub uids: Vec<u32>,
    /// Sender's cgroup v2 directory, which includes those below it (scope `outbound`); empty means any.
    pub cgroups: Vec<PathBuf>,
    /// What becomes of a flow that the rule selects.
    pub action: Action,
    /// Whose address the upstream sees.
    pub source: Source,
    /// Which upstream socket a UDP datagram leaves by.
    pub nat: Nat,
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
            from: vec![],
            to: vec![],
            except: vec![],
            ports: vec![],
            uids: vec![],
            cgroups: vec![],
            action,
            source: Source::default(),
            nat: Nat::default(),
        }
    }

    /// Whether its upstream sockets bear the client's address.
    #[must_use]
    pub fn is_spoofed(&self) -> bool {
        self.source != Source::Host && matches!(self.action, Action::Direct | Action::Upstream(_))
    }
}

/// The protocols of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Nat {
    /// One for each client address and port, whatever the destination: every peer sees the same endpoint, and whoever
    /// sends to that endpoint reaches the client.
    #[default]
    EndpointIndependent,
    /// One for each client address and port and each destination, which alone may answer.
    PerDestination,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, clap::ValueEnum)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Steer {
    /// tc marks the packet, and the sk_lookup program picks the listener.
    #[default]
    SkLookup,
    /// tc marks the packet, and assigns the socket itself with bpf_sk_assign.
    SkAssign,
}

/// Time limits.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For the upstream's answer to our SYN.
    pub connect: Duration,
    /// Without a byte in either direction.
    pub idle: Duration,
    /// For live connections to end after a stop was asked for.
    pub drain: Duration,
    /// For a UDP session without a datagram, as long as there was none in one of its directions.
    pub udp: Duration,
    /// For a UDP session without a datagram, once there was one in each direction.
    pub udp_stream: Duration,
}

/// How many UDP sessions there may be at once. Each takes at most two descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// In all.
    pub total: usize,
    /// Of one client address.
    pub per_client: usize,
}
