//! What is steered, as far as firewalls ask about it.

use std::{collections::BTreeSet, fmt};

use tproxy::{
    config::{Action, Config, Reach, Scope, Selector},
    family::Family,
    host::{Change, Standing, links, on_record, policy::Common},
    mark::Mark,
    plan::names,
};
use tproxy_common::flow::Protocol;

pub(super) const LOOPBACK: &str = "lo";

/// An interface that no rule of a firewall names.
pub(super) const STRANGER: &str = "";

/// First packets of flows, by what firewalls ask of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct FirstPacket {
    pub(in super::super) interface: String,
    pub(in super::super) family: Family,
    pub(in super::super) protocol: Protocol,
}

impl fmt::Display for FirstPacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.interface, named(self.protocol), self.family)
    }
}

/// As findings name it.
pub(super) const fn named(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

/// What is steered.
#[derive(Debug, Clone)]
pub(super) enum Steered {
    /// These.
    Known(BTreeSet<FirstPacket>),
    /// Some of these, by interface.
    Among(BTreeSet<FirstPacket>),
}

impl Steered {
    /// By rules.
    pub(super) fn by(config: &Config) -> Self {
        let links = links::snapshot().unwrap_or_default();
        let mut packets = BTreeSet::new();
        for rule in config.rules.iter().filter(|rule| is_taken(&rule.treatment.action)) {
            let Reach { scope, interfaces: named, .. } = &rule.selector.reach;
            let interfaces: Vec<String> = match scope {
                // Delivered as ever: the firewall has its say, and says the same.
                Scope::Inbound => continue,
                Scope::Outbound => vec![LOOPBACK.to_owned()],
                Scope::Forwarded => {
                    let there = links
                        .iter()
                        .filter(|link| link.master.is_none() && named.iter().any(|name| names(name, link)));
                    let absent = named.iter().filter(|name| {
                        !name.contains(['*', '?', '[']) && !links.iter().any(|link| link.name == **name)
                    });
                    let there: BTreeSet<_> = there.map(|link| link.name.clone()).collect();
                    there.into_iter().chain(absent.cloned()).collect()
                }
            };
            for interface in interfaces {
                packets.extend(all_by(&interface).filter(|packet| may_select(&rule.selector, packet)));
            }
        }
        Self::Known(packets)
    }

    /// By the instance that runs here; if there is none, by one that may.
    pub(super) fn on_this_host(mark: Mark) -> Self {
        let mut packets = BTreeSet::new();
        let mut interfaces = Vec::new();
        let living = on_record().unwrap_or_default().into_iter();
        for change in living
            .filter(|known| known.standing == Standing::Lives && known.identity.mark == mark)
            .flat_map(|known| known.changes)
        {
            match change {
                Change::Rule { iif, .. } => interfaces.push(iif),
                Change::CommonRule { rule: Common::OnLoopback, .. } => interfaces.push(LOOPBACK.to_owned()),
                Change::CommonRule { .. } => return Self::anything(),
                _ => {}
            }
        }
        if interfaces.is_empty() {
            return Self::anything();
        }
        for interface in interfaces {
            packets.extend(all_by(&interface));
        }
        Self::Known(packets)
    }

    fn anything() -> Self {
        let links = links::snapshot().unwrap_or_default().into_iter();
        let arrive = links.filter(|link| link.up && link.master.is_none() && link.name != LOOPBACK);
        let interfaces = arrive.map(|link| link.name).chain([STRANGER, LOOPBACK].map(str::to_owned));
        Self::Among(interfaces.flat_map(|interface| all_by(&interface).collect::<Vec<_>>()).collect())
    }

    pub(super) const fn packets(&self) -> &BTreeSet<FirstPacket> {
        match self {
            Self::Known(packets) | Self::Among(packets) => packets,
        }
    }
}

pub(super) fn all_by(interface: &str) -> impl Iterator<Item = FirstPacket> {
    Family::BOTH.into_iter().flat_map(move |family| {
        Protocol::ALL.map(move |protocol| FirstPacket { interface: interface.to_owned(), family, protocol })
    })
}

/// Refusals are sent by the datapath, which no firewall sees.
pub(super) const fn is_taken(action: &Action) -> bool {
    !matches!(action, Action::Pass | Action::Reject | Action::Drop)
}

pub(super) fn may_select(selector: &Selector, packet: &FirstPacket) -> bool {
    let family = [&selector.from, &selector.to]
        .into_iter()
        .all(|nets| nets.is_any() || nets.iter().any(|net| Family::of(net.addr()) == packet.family));
    family && selector.reach.protocols.include(packet.protocol)
}
