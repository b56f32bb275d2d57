//! The way of a packet through the chains of a firewall, whoever wrote them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use ipnet::IpNet;
use tproxy::family::Family;

use super::{FirstPacket, Protocol, destination::Destination};

/// Whether a rule's matches hold for every packet of a kind, for none, or for some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    Always,
    Never,
    Sometimes,
}

/// What a rule asks of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Test {
    /// It is the same for every packet that is looked at.
    Known(bool),
    /// It depends on what is not known: an address, a port.
    Unknown,
    /// The interface that it arrives by; a name that ends in `*` stands for all that begin like it.
    From(String),
    Family(Family),
    Protocol(Protocol),
    /// Where it goes to.
    To(IpNet),
    /// Its destination port.
    Port(RangeInclusive<u16>),
    /// These bits of its mark.
    Mark {
        value: u32,
        mask: u32,
    },
    All(Vec<Test>),
    Any(Vec<Test>),
    Not(Box<Test>),
}

impl Test {
    /// The opposite, if `inverted`.
    pub(super) fn inverted(self, inverted: bool) -> Self {
        if inverted { Self::Not(self.into()) } else { self }
    }

    pub(super) fn holds(&self, packet: &Marked<'_>) -> Holds {
        let known = |holds| if holds { Holds::Always } else { Holds::Never };
        match self {
            Self::Known(holds) => known(*holds),
            Self::Unknown => Holds::Sometimes,
            Self::From(name) => known(match name.strip_suffix('*') {
                Some(beginning) => packet.of.interface.starts_with(beginning),
                None => packet.of.interface == *name,
            }),
            Self::Family(family) => known(packet.of.family == *family),
            Self::Protocol(protocol) => known(packet.of.protocol == *protocol),
            Self::To(net) => packet.to.is_in(net),
            Self::Port(ports) => packet.to.has_port(ports),
            Self::Mark { value, mask } => packet.has(*value, *mask),
            Self::All(tests) => {
                tests.iter().fold(Holds::Always, |all, test| match (all, test.holds(packet)) {
                    (Holds::Never, _) | (_, Holds::Never) => Holds::Never,
                    (Holds::Always, Holds::Always) => Holds::Always,
                    _ => Holds::Sometimes,
                })
            }
            Self::Any(tests) => {
                tests.iter().fold(Holds::Never, |any, test| match (any, test.holds(packet)) {
                    (Holds::Always, _) | (_, Holds::Always) => Holds::Always,
                    (Holds::Never, Holds::Never) => Holds::Never,
                    _ => Holds::Sometimes,
                })
            }
            Self::Not(test) => match test.holds(packet) {
                Holds::Always => Holds::Never,
                Holds::Never => Holds::Always,
                Holds::Sometimes => Holds::Sometimes,
            },
        }
    }
}

/// A packet, and the bits of its mark that are known: those that are ours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marked<'a> {
    pub(super) of: &'a FirstPacket,
    pub(super) to: &'a Destination,
    pub(super) value: u32,
    pub(super) known: u32,
}

impl Marked<'_> {
    fn has(&self, value: u32, mask: u32) -> Holds {
        if (value ^ self.value) & mask & self.known != 0 {
            Holds::Never
        } else if mask & !self.known == 0 {
            Holds::Always
        } else {
            Holds::Sometimes
        }
    }

    /// Whether a rule changes bits that are known.
    pub(super) fn is_changed_by(&self, rule: &FirewallRule) -> bool {
        match rule.does {
            Does::SetMark { bits, to: None } => bits & self.known != 0,
            Does::SetMark { bits, to: Some(value) } => (value ^ self.value) & bits & self.known != 0,
            _ => false,
        }
    }
}

/// What a rule does with packets that it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Does {
    Accept,
    Discard,
    Jump(String),
    Goto(String),
    Return,
    /// These bits of the mark get other values, which may be known.
    SetMark {
        bits: u32,
        to: Option<u32>,
    },
    /// The packet goes on, to another destination.
    Redirect,
    /// The packet goes on.
    Nothing,
}

/// What a rule says of the state of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// Whatever packets its tests are about.
    Packets,
    /// Packets that conntrack finds invalid; a first packet is none.
    Invalid,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FirewallRule {
    pub(super) when: Test,
    pub(super) about: About,
    pub(super) does: Does,
    pub(super) text: String,
}

impl FirewallRule {
    /// Whether packets are discarded by it for what they are, not for their connection's sake.
    pub(super) fn is_policy(&self) -> bool {
        self.does == Does::Discard && self.about == About::Packets
    }

    pub(super) fn discards_invalid(&self) -> bool {
        self.does == Does::Discard && self.about == About::Invalid
    }

    fn holds(&self, packet: &Marked<'_>) -> Holds {
        match (self.about, self.when.holds(packet)) {
            (About::Invalid, Holds::Always) => Holds::Sometimes,
            (_, holds) => holds,
        }
    }
}

pub(super) type Chains = BTreeMap<String, Vec<FirewallRule>>;

/// What becomes of a packet in a chain that no rule accepts by what it is besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    Accepted,
    Discarded(String),
    GoesOn,
}

/// The fate of a packet that enters a chain.
pub(super) fn fate(chains: &Chains, chain: &str, packet: &Marked<'_>) -> Fate {
    follow(chains, chain, packet, &mut BTreeSet::new())
}

fn follow<'a>(
    chains: &'a Chains,
    chain: &'a str,
    packet: &Marked<'_>,
    above: &mut BTreeSet<&'a str>,
) -> Fate {
    // No firewall takes a loop; what is read may be of two moments.
    if !above.insert(chain) {
        return Fate::GoesOn;
    }
    let fate = chains.get(chain).map_or(Fate::GoesOn, |rules| through(chains, rules, packet, above));
    above.remove(chain);
    fate
}

fn through<'a>(
    chains: &'a Chains,
    rules: &'a [FirewallRule],
    packet: &Marked<'_>,
    above: &mut BTreeSet<&'a str>,
) -> Fate {
    for rule in rules.iter().filter(|rule| rule.holds(packet) == Holds::Always) {
        match &rule.does {
            Does::Accept => return Fate::Accepted,
            Does::Discard => return Fate::Discarded(rule.text.clone()),
            Does::Return => return Fate::GoesOn,
            Does::Goto(chain) => return follow(chains, chain, packet, above),
            Does::Jump(chain) => match follow(chains, chain, packet, above) {
                Fate::GoesOn => {}
                settled => return settled,
            },
            // The table is done with it.
            Does::Redirect => return Fate::Accepted,
            Does::SetMark { .. } | Does::Nothing => {}
        }
    }
    Fate::GoesOn
}

/// All rules that some packet of a kind matches on its way through a chain and those that it leads to, in order.
pub(super) fn met<'a>(chains: &'a Chains, chain: &'a str, packet: &Marked<'_>) -> Vec<&'a FirewallRule> {
    let mut met = Vec::new();
    collect(chains, chain, packet, &mut BTreeSet::new(), &mut met);
    met
}

/// Whether packets may come back from a chain.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Back {
    None,
    Some,
}

fn collect<'a>(
    chains: &'a Chains,
    chain: &'a str,
    packet: &Marked<'_>,
    seen: &mut BTreeSet<&'a str>,
    met: &mut Vec<&'a FirewallRule>,
) -> Back {
    if !seen.insert(chain) {
        return Back::Some;
    }
    let mut back = Back::None;
    for rule in chains.get(chain).into_iter().flatten() {
        let holds = rule.holds(packet);
        if holds == Holds::Never {
            continue;
        }
        met.push(rule);
        let after = match &rule.does {
            Does::Accept | Does::Discard | Does::Redirect => Back::None,
            Does::Return => {
                back = Back::Some;
                Back::None
            }
            Does::Goto(next) => {
                if collect(chains, next, packet, seen, met) == Back::Some {
                    back = Back::Some;
                }
                Back::None
            }
            Does::Jump(next) => collect(chains, next, packet, seen, met),
            Does::SetMark { .. } | Does::Nothing => Back::Some,
        };
        if holds == Holds::Always && after == Back::None {
            return back;
        }
    }
    Back::Some
}
