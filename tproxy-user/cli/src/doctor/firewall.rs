//! Firewalls, read: what iptables (of both kinds) and nft do with steered packets. Those traverse INPUT, where they meet
//! rules that never saw forwarded packets, and no longer FORWARD.
//!
//! Rules are followed through jumps, gotos, sets and maps, for the first packet of a flow by each interface, family and
//! protocol. What else it is (its addresses, its ports) is left open: a rule that takes only some packets settles nothing.

mod destination;
mod iptables;
mod nat;
mod nft;
mod programs;
mod steered;
mod walk;

use std::collections::{BTreeMap, BTreeSet};

use destination::Destination;
use programs::{FilterProgram, IptablesKind, iptables_programs, output};
pub(super) use steered::FirstPacket;
use steered::{LOOPBACK, STRANGER, Steered, named};
use tproxy::{
    config::{Config, Rule, Source},
    family::Family,
    host::admission::Admission,
    mark::Mark,
};
use tproxy_common::flow::Protocol;

use super::Finding;
use walk::{Chains, Fate, Marked, fate, met};

pub(super) const CHECK: &str = "firewall";

/// What stands in the way of steered packets, or does not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Obstacle {
    kind: ObstacleKind,
    /// Where it is, and how it is written.
    place: String,
    /// Whom it concerns.
    packets: BTreeSet<FirstPacket>,
    /// All that meet it.
    of: BTreeSet<FirstPacket>,
    /// The command that has steered packets get by, or what to do.
    cure: String,
    /// What would have them accepted there.
    admission: Admission,
}

impl Obstacle {
    /// With whom it concerns, if that is not everybody.
    fn shown(&self) -> String {
        format!("{}{}", self.place, whom(&self.packets, &self.of))
    }
}

/// What an obstacle does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ObstacleKind {
    /// Steered packets that no other rule accepts are discarded at INPUT.
    Discards,
    /// The steer mark is overwritten before the packet is routed by it.
    Unmarks,
    /// The mark of tproxy's own packets is overwritten before they leave.
    UnmarksOwn,
    /// Packets that conntrack finds invalid are discarded.
    DiscardsInvalid,
    /// What FORWARD discards gets through.
    IsBypassed,
    /// NAT sends elsewhere what is steered.
    Redirects,
    /// NAT sends elsewhere what this host sends.
    RedirectsOwn,
}

impl ObstacleKind {
    const fn is_nat(self) -> bool {
        matches!(self, Self::Redirects | Self::RedirectsOwn)
    }

    const fn breaks(self) -> &'static str {
        match self {
            Self::Discards => {
                "steered packets traverse INPUT and no longer FORWARD; what it does not accept by another rule is lost"
            }
            Self::Unmarks => {
                "the steer mark is overwritten before the packet is routed by it: flows that a rule selects go their own way"
            }
            Self::UnmarksOwn => {
                "the mark of tproxy's own packets is overwritten before they leave: scope outbound takes its own connections, again and again"
            }
            Self::DiscardsInvalid => {
                "with source = client-port both connections of a flow have one tuple, and conntrack may find packets of it invalid"
            }
            Self::IsBypassed => {
                "flows that a rule takes do not traverse FORWARD, so what this discards gets through"
            }
            Self::Redirects => {
                "what a rule takes of it goes where NAT sends it; and where NAT redirects anything, no connection is held until its upstream is connected: with accept = auto what is dead is accepted, and then reset"
            }
            Self::RedirectsOwn => {
                "what this host sends there is not taken: it passes, as it would without tproxy (pass_translated)"
            }
        }
    }
}

/// Where a chain is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChainHook {
    Prerouting,
    Input,
    Forward,
    Output,
}

impl ChainHook {
    /// What arrives by `lo` is this host's own, and not forwarded; of what leaves, only that is taken.
    fn sees(self, packet: &FirstPacket) -> bool {
        match self {
            Self::Prerouting | Self::Input => true,
            Self::Forward => packet.interface != LOOPBACK,
            Self::Output => packet.interface == LOOPBACK,
        }
    }

    /// The bits that are ours of the mark there.
    const fn mark(self, mark: Mark) -> u32 {
        match self {
            Self::Prerouting | Self::Input => mark.steer(),
            // As it would be if nobody steered it.
            Self::Forward => 0,
            Self::Output => mark.own(),
        }
    }

    /// What is to be accepted there, lest it meet an obstacle.
    const fn accepted(self, mark: Mark) -> u32 {
        match self {
            Self::Output => mark.own(),
            Self::Prerouting | Self::Input | Self::Forward => mark.steer(),
        }
    }
}

/// A chain at a hook, with those that it may lead to.
struct Base<'a> {
    chains: &'a Chains,
    name: &'a str,
    hook: ChainHook,
    /// As it is written where it discards what goes through.
    drops: Option<&'static str>,
}

/// What is to be found.
#[derive(Debug, Clone, Copy)]
struct View<'a> {
    mark: Mark,
    steered: &'a BTreeSet<FirstPacket>,
    /// What says so; without it, any destination may be meant.
    config: Option<&'a Config>,
}

/// What a chain does: the kind, how that is written, and to whom.
struct ChainEffect {
    kind: ObstacleKind,
    what: String,
    packets: BTreeSet<FirstPacket>,
}

impl Base<'_> {
    /// `seen` are the packets that the chain sees.
    fn look(&self, view: View<'_>, seen: &BTreeSet<FirstPacket>) -> Vec<ChainEffect> {
        let View { mark, config, .. } = view;
        let mut found = Gathered::default();
        for packet in seen {
            let marked =
                Marked { of: packet, to: &Destination::ANY, value: self.hook.mark(mark), known: mark.mask() };
            for (kind, rule) in self.redirects(&marked, config) {
                found.add(kind, &rule.text, packet);
            }
            let rules = met(self.chains, self.name, &marked);
            let unmarks = match self.hook {
                ChainHook::Prerouting => Some(ObstacleKind::Unmarks),
                ChainHook::Output => Some(ObstacleKind::UnmarksOwn),
                ChainHook::Input | ChainHook::Forward => None,
            };
            if let Some(kind) = unmarks {
                for rule in rules.iter().filter(|rule| marked.is_changed_by(rule)) {
                    found.add(kind, &rule.text, packet);
                }
            }
            if self.hook == ChainHook::Input {
                match (fate(self.chains, self.name, &marked), self.drops) {
                    (Fate::Discarded(what), _) => found.add(ObstacleKind::Discards, &what, packet),
                    (Fate::GoesOn, Some(policy)) => found.add(ObstacleKind::Discards, policy, packet),
                    (Fate::GoesOn, None) | (Fate::Accepted, _) => {}
                }
            }
            if self.hook == ChainHook::Forward {
                let goes_on = fate(self.chains, self.name, &marked) == Fate::GoesOn;
                let discarding = rules.iter().find(|rule| rule.is_policy()).map(|rule| &*rule.text);
                if let Some(what) = self.drops.filter(|_| goes_on).or(discarding) {
                    found.add(ObstacleKind::IsBypassed, what, packet);
                }
            } else if let Some(rule) = rules.iter().find(|rule| rule.discards_invalid()) {
                found.add(ObstacleKind::DiscardsInvalid, &rule.text, packet);
            }
        }
        found.by_kind()
    }
}

/// Findings in a chain, which has one cure for each kind.
#[derive(Default)]
struct Gathered(Vec<(ObstacleKind, Vec<String>, BTreeSet<FirstPacket>)>);

impl Gathered {
    fn add(&mut self, kind: ObstacleKind, what: &str, packet: &FirstPacket) {
        let at = self.0.iter().position(|(known, ..)| *known == kind).unwrap_or_else(|| {
            self.0.push((kind, Vec::new(), BTreeSet::new()));
            self.0.len() - 1
        });
        let (_, texts, packets) = &mut self.0[at];
        if !texts.iter().any(|text| text == what) {
            texts.push(what.to_owned());
        }
        packets.insert(packet.clone());
    }

    fn by_kind(self) -> Vec<ChainEffect> {
        let found = self.0.into_iter().map(|(kind, texts, packets)| {
            let more = texts.len() - 1;
            let rest = if more == 0 { String::new() } else { format!(", and {more} more") };
            ChainEffect { kind, what: format!("{}{rest}", texts[0]), packets }
        });
        found.collect()
    }
}

/// What is left out of `all`, as a remark behind a place.
fn whom(packets: &BTreeSet<FirstPacket>, all: &BTreeSet<FirstPacket>) -> String {
    fn narrowed<T: Ord>(
        packets: &BTreeSet<FirstPacket>,
        all: &BTreeSet<FirstPacket>,
        of: impl Fn(&FirstPacket) -> T,
    ) -> Option<BTreeSet<T>> {
        let [these, every]: [BTreeSet<T>; 2] =
            [packets, all].map(|packets| packets.iter().map(&of).collect());
        (these != every).then_some(these)
    }
    let mut words = Vec::new();
    if let Some(protocols) = narrowed(packets, all, |packet| packet.protocol) {
        words.extend(protocols.iter().map(|protocol| named(*protocol).to_owned()));
    }
    if let Some(families) = narrowed(packets, all, |packet| packet.family) {
        words.extend(families.iter().map(ToString::to_string));
    }
    // Hardly any firewall has something against the host's own: that says nothing of who arrives.
    let is_own = |packet: &&FirstPacket| {
        all.iter().any(|other| other.interface == STRANGER) && packet.interface == LOOPBACK
    };
    let [of_others, all_others]: [BTreeSet<FirstPacket>; 2] =
        [packets, all].map(|packets| packets.iter().filter(|packet| !is_own(packet)).cloned().collect());
    if let Some(interfaces) = narrowed(&of_others, &all_others, |packet| packet.interface.clone())
        && !interfaces.is_empty()
    {
        let named: Vec<_> = interfaces.into_iter().filter(|name| name != STRANGER).collect();
        words.push(format!("from {}", named.join(", ")));
    }
    if words.is_empty() { String::new() } else { format!(" ({})", words.join(" ")) }
}

/// What to do where a policy is bypassed.
const REPEAT: &str = "have tproxy discard the same, by a rule before the others with action = \"drop\"";

/// `config` says what will be steered, if there is one.
pub(super) fn examine(mark: Mark, config: Option<&Config>) -> Vec<Finding> {
    let steered = config.map_or_else(|| Steered::on_this_host(mark), Steered::by);
    let (mut obstacles, unread) = obstacles(View { mark, steered: steered.packets(), config });
    let keeps_port = |rule: &Rule| rule.treatment.is_spoofed() && rule.treatment.source == Source::ClientPort;
    if config.is_some_and(|config| !config.rules.iter().any(keeps_port)) {
        obstacles.retain(|found| found.kind != ObstacleKind::DiscardsInvalid);
    }
    let mut findings: Vec<_> = unread.iter().map(|error| Finding::unknown(CHECK, error)).collect();
    let (nat_obstacles, obstacles) = obstacles.into_iter().partition(|found| found.kind.is_nat());
    let (lets_in, obstacles) = sift(&steered, obstacles);
    for found in obstacles {
        findings.push(Finding::warn(CHECK, found.shown(), found.kind.breaks(), found.cure));
    }
    match lets_in {
        Some(some) => findings.push(Finding::ok(CHECK, some)),
        None if findings.is_empty() => findings.push(Finding::ok(
            CHECK,
            "no rule of iptables or nft discards what INPUT is not asked to accept, or takes the mark away",
        )),
        None => {}
    }
    findings.extend(nat::findings(&steered, nat_obstacles));
    findings
}

/// Most hosts trust one interface, and discard what arrives by others and no rule of theirs names. While nobody knows by
/// which of them packets are steered, that is said, and no reason to warn; what they discard by its name is.
fn sift(steered: &Steered, obstacles: Vec<Obstacle>) -> (Option<String>, Vec<Obstacle>) {
    let Steered::Among(all) = steered else { return (None, obstacles) };
    let is_lost = |packet: &FirstPacket| {
        obstacles.iter().any(|found| found.kind == ObstacleKind::Discards && found.packets.contains(packet))
    };
    let is_no_one = |interface: &str| matches!(interface, STRANGER | LOOPBACK);
    let mut trusted: BTreeMap<&str, bool> = BTreeMap::new();
    for packet in all.iter().filter(|packet| !is_no_one(&packet.interface)) {
        *trusted.entry(&packet.interface).or_insert(true) &= !is_lost(packet);
    }
    let is_trusting = trusted.values().any(|is| *is);
    let like_strangers = |packet: &FirstPacket| {
        let stranger = FirstPacket { interface: STRANGER.to_owned(), ..packet.clone() };
        is_lost(&stranger)
    };
    let [those, others] = [true, false].map(|wanted| {
        let names = trusted.iter().filter(|(_, is)| **is == wanted).map(|(name, _)| *name);
        names.collect::<Vec<_>>().join(", ")
    });
    let (mut left, mut untrusted) = (Vec::new(), BTreeSet::new());
    for mut found in obstacles.iter().cloned() {
        if found.kind == ObstacleKind::Discards && is_trusting {
            let by_default = |packet: &FirstPacket| like_strangers(packet) || is_no_one(&packet.interface);
            untrusted.extend(found.packets.iter().filter(|packet| by_default(packet)).cloned());
            found.packets.retain(|packet| !by_default(packet));
        }
        if found.packets.iter().any(|packet| trusted.is_empty() || packet.interface != STRANGER) {
            left.push(found);
        }
    }
    let is_said = untrusted.iter().any(|packet| !is_no_one(&packet.interface));
    let said = is_said.then(|| {
        format!("INPUT accepts what is steered from {those}, and not from {others}: tproxy doctor --config FILE looks at those that it names")
    });
    (said, left)
}

/// What a firewall does to what rules select, for the log; it may take seconds to ask it.
pub(crate) fn remarks(config: &Config) -> Vec<String> {
    let Steered::Known(steered) = Steered::by(config) else { return Vec::new() };
    if steered.is_empty() {
        return Vec::new();
    }
    let (obstacles, unread) = obstacles(View { mark: config.mark, steered: &steered, config: Some(config) });
    let matters = |found: &Obstacle| match found.kind {
        ObstacleKind::Discards | ObstacleKind::Unmarks | ObstacleKind::UnmarksOwn => true,
        // Where it sends them, they would have gone without us.
        ObstacleKind::DiscardsInvalid | ObstacleKind::IsBypassed | ObstacleKind::Redirects => false,
        ObstacleKind::RedirectsOwn => true,
    };
    let said = |found: Obstacle| {
        format!("firewall: {}: {}; cure: {}", found.shown(), found.kind.breaks(), found.cure)
    };
    let unread = unread.into_iter().map(|error| format!("firewall: cannot be read: {error}"));
    obstacles.into_iter().filter(matters).map(said).chain(unread).collect()
}

/// By which interfaces it may be tried whether a flow's first packet arrives.
pub(super) struct Tried {
    pub(super) entrances: BTreeSet<FirstPacket>,
    /// All of them are to be steered from, and not only some of them.
    pub(super) is_certain: bool,
}

/// What the rules that were read do not discard: one of those might answer whoever seems to have sent it.
pub(super) fn to_be_tried(mark: Mark, config: Option<&Config>) -> Tried {
    let steered = config.map_or_else(|| Steered::on_this_host(mark), Steered::by);
    let (obstacles, _) = obstacles(View { mark, steered: steered.packets(), config });
    let is_lost = |packet: &FirstPacket| {
        let discards = |kind| matches!(kind, ObstacleKind::Discards | ObstacleKind::Unmarks);
        obstacles.iter().any(|found| discards(found.kind) && found.packets.contains(packet))
    };
    let is_of_others = |packet: &&FirstPacket| !matches!(&*packet.interface, STRANGER | LOOPBACK);
    let tried = steered.packets().iter().filter(is_of_others).filter(|packet| !is_lost(packet));
    Tried { entrances: tried.cloned().collect(), is_certain: matches!(steered, Steered::Known(_)) }
}

/// Where a firewall discards what rules select, and it is to be accepted.
pub(crate) fn admissions(config: &Config) -> Vec<Admission> {
    let Steered::Known(steered) = Steered::by(config) else { return Vec::new() };
    if steered.is_empty() {
        return Vec::new();
    }
    // What cannot be read is said where the firewall is looked at.
    let (obstacles, _) = obstacles(View { mark: config.mark, steered: &steered, config: Some(config) });
    let discarding = obstacles.into_iter().filter(|found| found.kind == ObstacleKind::Discards);
    discarding.map(|found| found.admission).collect::<BTreeSet<_>>().into_iter().collect()
}

/// What discards steered packets of one kind, or takes their mark away, with its cure.
pub(super) fn obstacle(mark: Mark, interface: &str, family: Family, protocol: Protocol) -> Option<String> {
    let packet = FirstPacket { interface: interface.to_owned(), family, protocol };
    let (obstacles, _) = obstacles(View { mark, steered: &BTreeSet::from([packet]), config: None });
    let found = obstacles
        .into_iter()
        .find(|found| matches!(found.kind, ObstacleKind::Discards | ObstacleKind::Unmarks))?;
    Some(format!("likely because of the firewall: {}; cure: {}", found.place, found.cure))
}

/// All that is found in the network namespace of the calling thread, and what could not be read.
fn obstacles(view: View<'_>) -> (Vec<Obstacle>, Vec<String>) {
    let mut unread = Vec::new();
    let mut ask = |program: &str, args: &[&str]| {
        output(program, args).unwrap_or_else(|error| {
            unread.push(error);
            None
        })
    };
    let saved: Vec<_> = iptables_programs()
        .into_iter()
        .filter_map(|iptables| Some((ask(&format!("{}-save", iptables.program.name()), &[])?, iptables)))
        .collect();
    let listed = ask("nft", &["-j", "list", "ruleset"]);
    let listed = listed.map(|text| serde_json::from_str(&text)).transpose().unwrap_or_else(|error| {
        unread.push(format!("nft -j list ruleset: {error}"));
        None
    });
    let listed = listed.unwrap_or_default();
    let is_nft = |(_, iptables): &&(String, FilterProgram)| iptables.kind == IptablesKind::Nft;
    let left = saved.iter().filter(is_nft).map(|(_, iptables)| iptables.family).collect();
    let ruleset = nft::Ruleset::new(&listed, left);
    let mut obstacles = Vec::new();
    for (text, FilterProgram { program, family, kind }) in &saved {
        let is_left = |table: &str| *kind == IptablesKind::Legacy || !ruleset.reads(*family, table);
        obstacles.extend(iptables::obstacles(text, *program, *family, view, is_left));
    }
    obstacles.extend(ruleset.obstacles(view));
    (obstacles, unread)
}

#[cfg(test)]
mod tests;
