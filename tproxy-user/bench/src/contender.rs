//! Who is compared.

use std::fmt;

use serde::{Serialize, Serializer};

use tproxy::config::Source;

/// One way for a packet from the client to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contender {
    /// The gateway forwards; nothing is intercepted.
    Plain,
    /// A proxy on the gateway, and whose address the server sees.
    Proxy(Way, Source),
}

/// What steers, and who relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// iptables TPROXY, our relay.
    Iptables,
    /// nft tproxy, our relay.
    Nft,
    /// tc and `bpf_sk_assign`, our relay.
    SkAssign,
    /// tc marks, `sk_lookup` chooses, our relay.
    SkLookup,
    /// iptables TPROXY, HAProxy.
    Haproxy,
    /// iptables TPROXY, nginx's stream module.
    Nginx,
    /// iptables TPROXY, a relay of datagrams with one system call for each.
    Singly,
}

/// What a proxy can relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Skill {
    Both,
    Connections,
    Datagrams,
}

impl Way {
    const ALL: [Self; 7] =
        [Self::Iptables, Self::Nft, Self::SkAssign, Self::SkLookup, Self::Haproxy, Self::Nginx, Self::Singly];

    /// What would be picked instead of us.
    pub(super) const PEERS: [Self; 2] = [Self::Haproxy, Self::Nginx];

    /// Steering by our own datapath.
    pub(super) const fn is_datapath(self) -> bool {
        matches!(self, Self::SkAssign | Self::SkLookup)
    }

    /// HAProxy relays no UDP, and nginx takes a listener's port for that of every original destination.
    pub(super) const fn skill(self) -> Skill {
        match self {
            Self::Iptables | Self::Nft | Self::SkAssign | Self::SkLookup => Skill::Both,
            Self::Haproxy | Self::Nginx => Skill::Connections,
            Self::Singly => Skill::Datagrams,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nft => "nft",
            Self::SkAssign => "sk_assign",
            Self::SkLookup => "sk_lookup",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Singly => "singly",
        }
    }

    const fn explanation(self) -> &'static str {
        match self {
            Self::Iptables => "iptables TPROXY, relayed by tproxy's workers",
            Self::Nft => "nft tproxy, relayed by tproxy's workers",
            Self::SkAssign => "tproxy run --steer sk_assign",
            Self::SkLookup => "tproxy run --steer sk_lookup, the default",
            Self::Haproxy => "iptables TPROXY, relayed by HAProxy",
            Self::Nginx => "iptables TPROXY, relayed by nginx (stream module)",
            Self::Singly => "iptables TPROXY, UDP relayed with recv and send for each datagram",
        }
    }
}

impl Contender {
    /// Plain forwarding first.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let proxies = Way::ALL
            .into_iter()
            .flat_map(|way| [Source::Host, Source::Client].map(|source| Self::Proxy(way, source)));
        std::iter::once(Self::Plain).chain(proxies)
    }

    /// Whether `name` is its name, or the part of it before the source.
    pub(super) fn is_called(self, name: &str) -> bool {
        let own = self.to_string();
        own == name || own.split_once('/').is_some_and(|(way, _)| way == name)
    }

    /// What it is, in a line.
    pub(super) fn explanation(self) -> String {
        match self {
            Self::Plain => "the gateway forwards, nothing is intercepted".into(),
            Self::Proxy(way, Source::Host) => format!("{}; the server sees the gateway", way.explanation()),
            Self::Proxy(way, _) => format!("{}; the server sees the client's address", way.explanation()),
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => f.pad("plain"),
            Self::Proxy(way, Source::Host) => f.pad(&format!("{}/host", way.name())),
            Self::Proxy(way, _) => f.pad(&format!("{}/client", way.name())),
        }
    }
}

impl Serialize for Contender {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_selects_both_sources_and_a_full_name_one() {
        let called = |name| Contender::all().filter(|contender| contender.is_called(name)).count();
        assert_eq!(["plain", "haproxy", "haproxy/client", "hap"].map(called), [1, 2, 1, 0]);
        assert_eq!(Contender::all().count(), 15);
    }
}
