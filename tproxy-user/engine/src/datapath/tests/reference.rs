//! What the programs have to do with a packet, by the parser and the policy as they are in user space.

use std::{cell::Cell, collections::HashMap};

use tproxy_common::{
    abi::{APPLICATION, CARRY, Decision, FragmentCourse, FragmentKey, Origin, PASSED, scope_bit},
    addr::Addr,
    flow::{Flow, Protocol, Tuple},
    packet::{self, Kind, Packet},
    policy::{Lookups, Readable, decide, decide_unreadable, may_arrive_by, may_be_reply, may_select},
    rule::{ActionKind, RuleIndex, RuleSet, Scope},
    verdict::{Reason, Verdict},
};

use super::frames::ETHERNET;
use crate::{
    datapath::{HookPacket, PacketCourse},
    host::{
        Direction,
        links::{Layer, Link},
    },
    mark::Mark,
    policy::HostLookups,
};

/// The sender of every packet in a test run.
const SUPERUSER: u32 = 0;

/// What a program has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) course: PacketCourse,
    pub(super) mark: u32,
    /// What is counted, in order.
    pub(super) reasons: Vec<Reason>,
}

/// A datapath without a socket that is connected, whose listener lookup is attached.
pub(super) struct Reference<'a> {
    pub(super) rules: HostLookups<'a>,
    pub(super) mark: Mark,
    pub(super) deciding: bool,
    /// What is remembered of the TCP flows seen.
    pub(super) decisions: HashMap<Tuple, Decision>,
    /// What is remembered of the UDP flows seen: rule, worker and interface.
    pub(super) memory: HashMap<Tuple, (RuleIndex, u32, u32)>,
    /// How many flows each rule has decided.
    pub(super) hits: HashMap<RuleIndex, u64>,
    fragments: HashMap<FragmentKey, FragmentCourse>,
    /// Counted for the packet at hand.
    counted: Vec<Reason>,
}

/// The only one.
const WORKER: u32 = 0;

type Decided = Result<(PacketCourse, Reason), Reason>;

impl<'a> Reference<'a> {
    pub(super) fn new(rules: HostLookups<'a>, mark: Mark, deciding: bool) -> Self {
        let (decisions, memory, fragments) = (HashMap::new(), HashMap::new(), HashMap::new());
        let hits = HashMap::new();
        Self { rules, mark, deciding, decisions, memory, hits, fragments, counted: vec![] }
    }

    /// `to_us`: as the link layer says.
    pub(super) fn sees(
        &mut self,
        link: &Link,
        hook: Direction,
        to_us: bool,
        seen: HookPacket<'_>,
    ) -> Expected {
        self.counted.clear();
        let link_header = if link.layer == Layer::Ip { 0 } else { ETHERNET };
        let parsed = packet::parse(seen.packet, link_header);
        let own = seen.mark & self.mark.mask() == self.mark.own();
        let decided = match (hook, link.layer) {
            (Direction::Ingress, Layer::Loopback) => return self.loopback(own, parsed, seen.mark),
            (Direction::Ingress, _) if !to_us => Err(Reason::NotForUs),
            _ if own => Err(Reason::OwnMark),
            // A first packet that was held, on its way in.
            (Direction::Egress, _) if self.mark.is_steered(seen.mark) => {
                return Expected {
                    course: PacketCourse::Passed,
                    mark: seen.mark,
                    reasons: vec![Reason::NotOurs],
                };
            }
            (Direction::Egress, _)
                if parsed == Err(Reason::OtherProtocol) && self.leads_past(link, link_header, seen) =>
            {
                Ok((PacketCourse::Dropped, Reason::Redirect))
            }
            _ => parsed.and_then(|parsed| match (parsed.kind, parsed.protocol) {
                (Kind::LaterFragment, _) => self.later_fragment(link, hook, &parsed),
                (Kind::Unreadable | Kind::Hidden, _) => self.unreadable(link, hook, &parsed, seen),
                (_, Protocol::Tcp) => self.segment(link, hook, &parsed, seen),
                (_, Protocol::Udp) => self.datagram(link, hook, &parsed, seen),
            }),
        };
        let (course, reason) = decided.unwrap_or_else(|reason| (PacketCourse::Passed, reason));
        let mark = match course {
            PacketCourse::Steered => self.unmarked(seen.mark) | self.mark.steer(),
            _ => seen.mark,
        };
        self.counted.push(reason);
        // A packet may have come with the steer mark.
        let course =
            if course == PacketCourse::Passed && hook == Direction::Ingress && self.mark.is_steered(mark) {
                PacketCourse::Steered
            } else {
                course
            };
        Expected { course, mark, reasons: self.counted.clone() }
    }

    /// Whether this host tells somebody whose flows a rule may select of a way past it.
    fn leads_past(&self, link: &Link, link_header: usize, seen: HookPacket<'_>) -> bool {
        let is_client = |protocol| may_arrive_by(link.index, protocol, &self.rules);
        seen.ingress_ifindex == 0
            && packet::is_redirect(seen.packet, link_header)
            && Protocol::ALL.into_iter().any(is_client)
    }

    fn unmarked(&self, mark: u32) -> u32 {
        mark & !self.mark.mask()
    }

    fn has(&self, scope: Scope, protocol: Protocol) -> bool {
        self.rules.compiled.extent.scopes & scope_bit(scope, protocol) != 0
    }

    fn loopback(&mut self, own: bool, parsed: Result<Packet, Reason>, mark: u32) -> Expected {
        if self.mark.is_steered(mark) {
            return Expected { course: PacketCourse::Steered, mark, reasons: self.counted.clone() };
        }
        if !own {
            return Expected { course: PacketCourse::Passed, mark, reasons: vec![] };
        }
        let mut after = mark;
        let datagrams = self.has(Scope::Inbound, Protocol::Udp) || self.has(Scope::Outbound, Protocol::Udp);
        match parsed {
            Ok(Packet { kind: Kind::Syn, tuple, .. }) if self.has(Scope::Inbound, Protocol::Tcp) => {
                self.decisions.insert(tuple, decision(0, APPLICATION));
                after = self.unmarked(mark);
            }
            Ok(Packet { kind: Kind::Datagram, tuple, .. })
                if datagrams && !(self.rules.is_host_address)(&tuple.src) =>
            {
                self.memory.insert(tuple, (0, APPLICATION, 0));
            }
            _ => {}
        }
        Expected { course: PacketCourse::Passed, mark: after, reasons: vec![Reason::OwnMark] }
    }

    /// SYN decides, sockets remember; and here they remember decisions only.
    fn segment(&mut self, link: &Link, hook: Direction, parsed: &Packet, seen: HookPacket<'_>) -> Decided {
        if hook == Direction::Egress && parsed.kind == Kind::IcmpError {
            return Err(Reason::NotOurs);
        }
        let waits_for_ack = self.decisions.get(&parsed.tuple).is_some_and(|d| d.worker != APPLICATION);
        match parsed.kind {
            Kind::Syn if hook == Direction::Egress && seen.ingress_ifindex != 0 => Err(Reason::NotOurs),
            Kind::Syn if hook == Direction::Ingress && parsed.hops <= 1 && !waits_for_ack => {
                Err(Reason::Expiring)
            }
            Kind::Syn => {
                let verdict = self.ask(scope_of(hook), Protocol::Tcp, link, &parsed.tuple);
                if !matches!(verdict, Verdict::Steer(_)) && waits_for_ack {
                    self.decisions.remove(&parsed.tuple);
                }
                self.first(link, hook, verdict, parsed, seen)
            }
            Kind::Ack if waits_for_ack => Ok((PacketCourse::Steered, Reason::Decided)),
            _ => Err(Reason::NotOurs),
        }
    }

    /// The first datagram decides, then the flow is remembered.
    fn datagram(&mut self, link: &Link, hook: Direction, parsed: &Packet, seen: HookPacket<'_>) -> Decided {
        let sent_here = hook == Direction::Ingress || seen.ingress_ifindex == 0;
        let tuple = &parsed.tuple;
        if parsed.kind == Kind::IcmpError {
            return Err(Reason::NotOurs);
        }
        // By which interface this one comes in; what is remembered of another is not said of it.
        let arrival = if hook == Direction::Ingress { link.index } else { seen.ingress_ifindex };
        let mut elsewhere = false;
        match self.memory.get(tuple) {
            Some((_, APPLICATION, _)) if hook == Direction::Ingress => {
                return self.leave_alone(link, parsed, Reason::Remembered);
            }
            Some((CARRY, _, at) | (_, PASSED, at)) if hook == Direction::Ingress && *at == link.index => {
                return self.leave_alone(link, parsed, Reason::Remembered);
            }
            Some((CARRY, ..) | (_, PASSED, _)) if hook == Direction::Ingress => {}
            Some((CARRY, ..) | (_, PASSED | APPLICATION, _)) => {
                self.follow(parsed, FragmentCourse::Pass);
                return Err(Reason::Remembered);
            }
            Some((_, _, at)) if hook == Direction::Ingress && *at != link.index => elsewhere = true,
            Some(_) if sent_here => {
                self.follow(parsed, FragmentCourse::Steer);
                return Ok((PacketCourse::Steered, Reason::Decided));
            }
            _ => {}
        }
        if hook == Direction::Ingress && parsed.hops <= 1 && !(self.rules.is_host_address)(&tuple.dst) {
            return Err(Reason::Expiring);
        }
        if !sent_here {
            self.memory.insert(*tuple, (0, PASSED, arrival));
            self.follow(parsed, FragmentCourse::Pass);
            return Err(Reason::NotOurs);
        }
        let verdict = if self.is_reply(tuple, arrival) {
            Verdict::Pass(Reason::Remembered)
        } else {
            self.ask(scope_of(hook), Protocol::Udp, link, tuple)
        };
        let course = self.first(link, hook, verdict, parsed, seen);
        // One that is carried after all is remembered as passed, too.
        let passes = matches!(course, Err(Reason::NoRule | Reason::RulePass | Reason::Remembered));
        if passes && !elsewhere {
            self.memory.insert(*tuple, (0, PASSED, arrival));
        }
        course
    }

    fn unreadable(&mut self, link: &Link, hook: Direction, parsed: &Packet, seen: HookPacket<'_>) -> Decided {
        let (protocol, tuple, scope) = (parsed.protocol, parsed.tuple, scope_of(hook));
        if !self.deciding || hook == Direction::Egress && seen.ingress_ifindex != 0 {
            return Err(Reason::Malformed);
        }
        let mut flow = Flow { protocol, tuple, ifindex: link.index, uid: SUPERUSER };
        match decide_unreadable(scope, &mut flow, Readable::of(parsed), &self.rules) {
            Verdict::Pass(reason) => Err(reason),
            _ => {
                self.follow(parsed, FragmentCourse::Drop);
                Ok((PacketCourse::Dropped, Reason::Unreadable))
            }
        }
    }

    fn first(
        &mut self,
        link: &Link,
        hook: Direction,
        verdict: Verdict,
        parsed: &Packet,
        seen: HookPacket<'_>,
    ) -> Decided {
        match verdict {
            Verdict::Pass(reason) => self.leave_alone(link, parsed, reason),
            Verdict::Steer(_) if parsed.kind == Kind::Syn && packet::is_signed(seen.packet, parsed.l4) => {
                Err(Reason::Signed)
            }
            Verdict::Steer(rule) => {
                self.follow(parsed, FragmentCourse::Steer);
                let arrival = if hook == Direction::Ingress { link.index } else { 0 };
                self.remember(rule, parsed.protocol, &parsed.tuple, arrival);
                Ok((PacketCourse::Steered, Reason::RuleSteer))
            }
            Verdict::Drop => {
                self.follow(parsed, FragmentCourse::Drop);
                Ok((PacketCourse::Dropped, Reason::RuleDrop))
            }
            Verdict::Unreadable => {
                self.follow(parsed, FragmentCourse::Drop);
                Ok((PacketCourse::Dropped, Reason::Unreadable))
            }
            Verdict::Reject => {
                self.follow(parsed, FragmentCourse::Drop);
                if can_be_answered(parsed, seen.packet) {
                    Ok((PacketCourse::Answered, Reason::RuleReject))
                } else {
                    self.counted.push(Reason::RuleReject);
                    Ok((PacketCourse::Dropped, Reason::KernelRefused))
                }
            }
        }
    }

    fn leave_alone(&mut self, link: &Link, parsed: &Packet, reason: Reason) -> Decided {
        let course = parsed.fragment().and_then(|key| self.fragments.get(&key).copied());
        let is_forwarded = !(self.rules.is_host_address)(&parsed.tuple.dst);
        if parsed.kind == Kind::Datagram && course == Some(FragmentCourse::Steer) && is_forwarded {
            self.memory.insert(parsed.tuple, (CARRY, WORKER, link.index));
            return Ok((PacketCourse::Steered, Reason::Carried));
        }
        self.follow(parsed, FragmentCourse::Pass);
        Err(reason)
    }

    fn later_fragment(&mut self, link: &Link, hook: Direction, parsed: &Packet) -> Decided {
        let key = parsed.fragment().expect("a fragment");
        let course = match (self.fragments.get(&key), hook) {
            (Some(course), _) => *course,
            (None, Direction::Egress) => FragmentCourse::Pass,
            (None, Direction::Ingress) => {
                let (protocol, tuple) = (parsed.protocol, parsed.tuple);
                let flow = Flow { protocol, tuple, ifindex: link.index, uid: SUPERUSER };
                let ours = protocol == Protocol::Udp
                    && (may_select(&flow, &self.rules)
                        || self.rules.compiled.extent.spoofs_datagrams && may_be_reply(&flow, &self.rules));
                let course = if ours { FragmentCourse::Steer } else { FragmentCourse::Pass };
                self.follow(parsed, course);
                course
            }
        };
        match course {
            FragmentCourse::Pass => Err(Reason::Fragment),
            FragmentCourse::Steer => Ok((PacketCourse::Steered, Reason::SteerFragment)),
            FragmentCourse::Drop => Ok((PacketCourse::Dropped, Reason::DropFragment)),
        }
    }

    fn follow(&mut self, parsed: &Packet, course: FragmentCourse) {
        self.fragments.extend(parsed.fragment().map(|key| (key, course)));
    }

    fn is_reply(&self, tuple: &Tuple, arrival: u32) -> bool {
        matches!(
            self.memory.get(&tuple.reversed()),
            Some((CARRY, _, at) | (_, PASSED, at)) if *at != arrival
        )
    }

    fn ask(&mut self, scope: Scope, protocol: Protocol, link: &Link, tuple: &Tuple) -> Verdict {
        let (verdict, decider) = self.verdict(scope, protocol, link, tuple);
        if let Some(rule) = decider {
            *self.hits.entry(rule).or_default() += 1;
        }
        verdict
    }

    fn verdict(
        &self,
        scope: Scope,
        protocol: Protocol,
        link: &Link,
        tuple: &Tuple,
    ) -> (Verdict, Option<RuleIndex>) {
        if !self.deciding {
            return (Verdict::Pass(Reason::Draining), None);
        }
        let flow = Flow { protocol, tuple: *tuple, ifindex: link.index, uid: SUPERUSER };
        let asked = Asked { rules: &self.rules, decider: Cell::default() };
        (decide(scope, &flow, &asked), asked.decider.get())
    }

    fn remember(&mut self, rule: RuleIndex, protocol: Protocol, tuple: &Tuple, arrival: u32) {
        match protocol {
            Protocol::Tcp => drop(self.decisions.insert(*tuple, decision(rule, WORKER))),
            Protocol::Udp => drop(self.memory.insert(*tuple, (rule, WORKER, arrival))),
        }
    }
}

/// The rules, with the one that has decided.
struct Asked<'a> {
    rules: &'a HostLookups<'a>,
    decider: Cell<Option<RuleIndex>>,
}

impl Lookups for Asked<'_> {
    fn is_host_address(&self, addr: &Addr) -> bool {
        self.rules.is_host_address(addr)
    }

    fn is_publishing(&self, protocol: Protocol) -> bool {
        self.rules.is_publishing(protocol)
    }

    fn by_scope(&self, scope: Scope, protocol: Protocol) -> Option<&RuleSet> {
        self.rules.by_scope(scope, protocol)
    }

    fn by_source(&self, addr: &Addr) -> Option<&RuleSet> {
        self.rules.by_source(addr)
    }

    fn by_destination(&self, addr: &Addr) -> Option<&RuleSet> {
        self.rules.by_destination(addr)
    }

    fn by_port(&self, port: u16) -> Option<&RuleSet> {
        self.rules.by_port(port)
    }

    fn by_interface(&self, ifindex: u32) -> Option<&RuleSet> {
        self.rules.by_interface(ifindex)
    }

    fn by_uid(&self, uid: u32) -> Option<&RuleSet> {
        self.rules.by_uid(uid)
    }

    fn by_cgroup(&self) -> Option<&RuleSet> {
        self.rules.by_cgroup()
    }

    fn for_any_port(&self) -> Option<&RuleSet> {
        self.rules.for_any_port()
    }

    fn strict(&self) -> Option<&RuleSet> {
        self.rules.strict()
    }

    fn action(&self, rule: RuleIndex) -> ActionKind {
        self.decider.set(Some(rule));
        self.rules.action(rule)
    }
}

const fn scope_of(hook: Direction) -> Scope {
    match hook {
        Direction::Ingress => Scope::Forwarded,
        Direction::Egress => Scope::Outbound,
    }
}

/// Whether the program can turn the packet into its refusal.
fn can_be_answered(parsed: &Packet, bytes: &[u8]) -> bool {
    match parsed.protocol {
        Protocol::Tcp => has_whole_header(parsed, bytes),
        Protocol::Udp => is_taken_for_ip(bytes) && is_quotable(parsed, bytes),
    }
}

/// The whole TCP header but its urgent pointer is there, whatever the lengths say.
fn has_whole_header(parsed: &Packet, bytes: &[u8]) -> bool {
    const OFFSET: usize = 12;
    const CHECKSUM_END: usize = 18;
    let header = usize::from(bytes[parsed.l4 + OFFSET] >> 4) * 4;
    bytes.len() >= parsed.l4 + if header > 20 { header } else { CHECKSUM_END }
}

/// Room is made in what the kernel takes for an IP packet only; in a test run that depends on where it looks for an
/// EtherType.
fn is_taken_for_ip(bytes: &[u8]) -> bool {
    matches!(bytes[12..ETHERNET], [0x08, 0x00] | [0x86, 0xdd])
}

fn is_quotable(parsed: &Packet, bytes: &[u8]) -> bool {
    const MOST: usize = 128;
    const UDP_HEADER: usize = 8;
    let l3 = if is_taken_for_ip(bytes) { ETHERNET } else { 0 };
    parsed.l4 + UDP_HEADER - l3 <= MOST
}

/// Without when and how its first packet came.
fn decision(rule: RuleIndex, worker: u32) -> Decision {
    Decision { seen: 0, rule, worker, origin: Origin::default() }
}
