//! What the programs have to do with a packet, by the parser and the policy as they are in user space.

use std::{cell::Cell, collections::HashMap};

use tproxy_common::{
    abi::{APPLICATION, CARRY, Decision, FragmentCourse, FragmentKey, PASSED, scope_bit},
    addr::Addr,
    flow::{Flow, Protocol, Tuple},
    packet::{self, Kind, Packet, Piece},
    policy::{Lookups, decide, may_be_reply, may_select},
    rule::{ActionKind, RuleIndex, RuleSet, Scope},
    verdict::{Reason, Verdict},
};

use super::frames::ETHERNET;
use crate::{
    config::Steer,
    datapath::{Course, Seen},
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
    pub(super) course: Course,
    pub(super) mark: u32,
    /// What is counted, in order.
    pub(super) reasons: Vec<Reason>,
}

/// A datapath without a socket that is connected, whose listener lookup is attached.
pub(super) struct Reference<'a> {
    pub(super) rules: HostLookups<'a>,
    pub(super) mark: Mark,
    pub(super) steer: Steer,
    pub(super) deciding: bool,
    /// What is remembered of the TCP flows seen.
    pub(super) decisions: HashMap<Tuple, Decision>,
    /// What is remembered of the UDP flows seen: rule and worker.
    pub(super) memory: HashMap<Tuple, (RuleIndex, u32)>,
    /// How many flows each rule has decided.
    pub(super) hits: HashMap<RuleIndex, u64>,
    fragments: HashMap<FragmentKey, FragmentCourse>,
    /// Counted for the packet at hand.
    counted: Vec<Reason>,
}

/// The only one.
const WORKER: u32 = 0;

type Decided = Result<(Course, Reason), Reason>;

impl<'a> Reference<'a> {
    pub(super) fn new(rules: HostLookups<'a>, mark: Mark, steer: Steer, deciding: bool) -> Self {
        let (decisions, memory, fragments) = (HashMap::new(), HashMap::new(), HashMap::new());
        let hits = HashMap::new();
        Self { rules, mark, steer, deciding, decisions, memory, hits, fragments, counted: vec![] }
    }

    /// `to_us`: as the link layer says.
    pub(super) fn sees(&mut self, link: &Link, hook: Direction, to_us: bool, seen: Seen<'_>) -> Expected {
        self.counted.clear();
        let link_header = if link.layer == Layer::Ip { 0 } else { ETHERNET };
        let parsed = packet::parse(seen.packet, link_header);
        let own = seen.mark & self.mark.mask() == self.mark.own();
        let decided = match (hook, link.layer) {
            (Direction::Ingress, Layer::Loopback) => return self.loopback(link, own, parsed, seen.mark),
            (Direction::Ingress, _) if !to_us => Err(Reason::NotForUs),
            _ if own => Err(Reason::OwnMark),
            _ => parsed.and_then(|parsed| match (parsed.kind, parsed.protocol) {
                (Kind::LaterFragment, _) => self.later_fragment(link, hook, &parsed),
                (_, Protocol::Tcp) => self.segment(link, hook, &parsed, seen),
                (_, Protocol::Udp) => self.datagram(link, hook, &parsed, seen),
            }),
        };
        let (course, reason) = decided.unwrap_or_else(|reason| (Course::Passed, reason));
        let mark = match course {
            Course::Steered => self.unmarked(seen.mark) | self.mark.steer(),
            _ => seen.mark,
        };
        self.counted.push(reason);
        // A packet may have come with the steer mark.
        let course = if course == Course::Passed && hook == Direction::Ingress && self.mark.is_steered(mark) {
            Course::Steered
        } else {
            course
        };
        Expected { course, mark, reasons: self.counted.clone() }
    }

    fn unmarked(&self, mark: u32) -> u32 {
        mark & !self.mark.mask()
    }

    fn has(&self, scope: Scope, protocol: Protocol) -> bool {
        self.rules.compiled.extent.scopes & scope_bit(scope, protocol) != 0
    }

    fn loopback(&mut self, link: &Link, own: bool, parsed: Result<Packet, Reason>, mark: u32) -> Expected {
        if self.mark.is_steered(mark) {
            if let (Steer::SkAssign, Ok(Packet { piece: Piece::Whole, protocol, tuple, .. })) =
                (self.steer, parsed)
            {
                self.lookup(protocol, link, &tuple);
            }
            return Expected { course: Course::Steered, mark, reasons: self.counted.clone() };
        }
        if !own {
            return Expected { course: Course::Passed, mark, reasons: vec![] };
        }
        let mut after = mark;
        let datagrams = self.has(Scope::Inbound, Protocol::Udp) || self.has(Scope::Outbound, Protocol::Udp);
        match parsed {
            Ok(Packet { kind: Kind::Syn, tuple, .. }) if self.has(Scope::Inbound, Protocol::Tcp) => {
                self.decisions.insert(tuple, Decision { seen: 0, rule: 0, worker: APPLICATION });
                after = self.unmarked(mark);
            }
            Ok(Packet { kind: Kind::Datagram, tuple, .. })
                if datagrams && !(self.rules.is_host_address)(&tuple.src) =>
            {
                self.memory.insert(tuple, (0, APPLICATION));
            }
            _ => {}
        }
        Expected { course: Course::Passed, mark: after, reasons: vec![Reason::OwnMark] }
    }

    /// SYN decides, sockets remember; and here they remember decisions only.
    fn segment(&mut self, link: &Link, hook: Direction, parsed: &Packet, seen: Seen<'_>) -> Decided {
        if hook == Direction::Egress && parsed.kind == Kind::IcmpError {
            return Err(Reason::NotOurs);
        }
        self.lookup(Protocol::Tcp, link, &parsed.tuple);
        let waits_for_ack = self.decisions.get(&parsed.tuple).is_some_and(|d| d.worker != APPLICATION)
            || self.is_dropped_inbound(link, &parsed.tuple);
        match parsed.kind {
            Kind::Syn if hook == Direction::Egress && seen.ingress_ifindex != 0 => Err(Reason::NotOurs),
            Kind::Syn => {
                let verdict = self.ask(scope_of(hook), Protocol::Tcp, link, &parsed.tuple);
                if !matches!(verdict, Verdict::Steer(_)) && waits_for_ack {
                    self.decisions.remove(&parsed.tuple);
                }
                self.first(verdict, parsed, seen)
            }
            Kind::Ack if waits_for_ack => Ok((Course::Steered, Reason::Decided)),
            _ => Err(Reason::NotOurs),
        }
    }

    /// `sk_lookup` gives it to the black hole, which is a socket of ours as well.
    fn is_dropped_inbound(&self, link: &Link, tuple: &Tuple) -> bool {
        !self.decisions.contains_key(tuple)
            && self.has(Scope::Inbound, Protocol::Tcp)
            && self.verdict(Scope::Inbound, Protocol::Tcp, link, tuple).0 == Verdict::Drop
    }

    /// The first datagram decides, then the flow is remembered.
    fn datagram(&mut self, link: &Link, hook: Direction, parsed: &Packet, seen: Seen<'_>) -> Decided {
        let sent_here = hook == Direction::Ingress || seen.ingress_ifindex == 0;
        let tuple = &parsed.tuple;
        if parsed.kind == Kind::IcmpError {
            if hook == Direction::Ingress {
                self.lookup(Protocol::Udp, link, tuple);
            }
            return Err(Reason::NotOurs);
        }
        match self.memory.get(tuple) {
            Some((CARRY, _) | (_, PASSED | APPLICATION)) if hook == Direction::Ingress => {
                return self.leave_alone(parsed, Reason::Remembered);
            }
            Some((CARRY, _) | (_, PASSED | APPLICATION)) => {
                self.follow(parsed, FragmentCourse::Pass);
                return Err(Reason::Remembered);
            }
            Some(_) if sent_here => {
                self.follow(parsed, FragmentCourse::Steer);
                return Ok((Course::Steered, Reason::Decided));
            }
            _ => {}
        }
        self.lookup(Protocol::Udp, link, tuple);
        if hook == Direction::Ingress && parsed.hops <= 1 {
            return Err(Reason::Expiring);
        }
        if !sent_here {
            self.is_reply(tuple);
            self.memory.insert(*tuple, (0, PASSED));
            self.follow(parsed, FragmentCourse::Pass);
            return Err(Reason::NotOurs);
        }
        let verdict = if self.is_reply(tuple) {
            Verdict::Pass(Reason::Remembered)
        } else {
            self.ask(scope_of(hook), Protocol::Udp, link, tuple)
        };
        if matches!(verdict, Verdict::Pass(Reason::NoRule | Reason::RulePass)) {
            self.memory.insert(*tuple, (0, PASSED));
        }
        self.first(verdict, parsed, seen)
    }

    fn first(&mut self, verdict: Verdict, parsed: &Packet, seen: Seen<'_>) -> Decided {
        match verdict {
            Verdict::Pass(reason) => self.leave_alone(parsed, reason),
            Verdict::Steer(rule) => {
                self.follow(parsed, FragmentCourse::Steer);
                self.remember(rule, parsed.protocol, &parsed.tuple);
                Ok((Course::Steered, Reason::RuleSteer))
            }
            Verdict::Drop => {
                self.follow(parsed, FragmentCourse::Drop);
                Ok((Course::Dropped, Reason::RuleDrop))
            }
            Verdict::Reject => {
                self.follow(parsed, FragmentCourse::Drop);
                if can_be_answered(parsed, seen.packet) {
                    Ok((Course::Answered, Reason::RuleReject))
                } else {
                    self.counted.push(Reason::RuleReject);
                    Ok((Course::Dropped, Reason::KernelRefused))
                }
            }
        }
    }

    fn leave_alone(&mut self, parsed: &Packet, reason: Reason) -> Decided {
        let course = parsed.fragment().and_then(|key| self.fragments.get(&key).copied());
        let is_forwarded = !(self.rules.is_host_address)(&parsed.tuple.dst);
        if parsed.kind == Kind::Datagram && course == Some(FragmentCourse::Steer) && is_forwarded {
            self.memory.insert(parsed.tuple, (CARRY, WORKER));
            return Ok((Course::Steered, Reason::Carried));
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
            FragmentCourse::Steer => Ok((Course::Steered, Reason::SteerFragment)),
            FragmentCourse::Drop => Ok((Course::Dropped, Reason::DropFragment)),
        }
    }

    fn follow(&mut self, parsed: &Packet, course: FragmentCourse) {
        self.fragments.extend(parsed.fragment().map(|key| (key, course)));
    }

    fn is_reply(&mut self, tuple: &Tuple) -> bool {
        let replies = matches!(self.memory.get(&tuple.reversed()), Some((CARRY, _) | (_, PASSED)));
        if replies {
            self.memory.insert(*tuple, (0, PASSED));
        }
        replies
    }

    /// tc asks the kernel for the packet's socket, and the kernel asks `sk_lookup`, which decides in scope `inbound`.
    fn lookup(&mut self, protocol: Protocol, link: &Link, tuple: &Tuple) {
        let inbound = self.has(Scope::Inbound, protocol);
        match protocol {
            Protocol::Tcp if self.decisions.contains_key(tuple) || !inbound => return,
            Protocol::Udp if self.memory.contains_key(tuple) => return,
            Protocol::Udp if !inbound && !self.has(Scope::Outbound, protocol) => return,
            Protocol::Udp if self.is_reply(tuple) => return,
            _ => {}
        }
        let verdict = if inbound {
            self.ask(Scope::Inbound, protocol, link, tuple)
        } else {
            Verdict::Pass(Reason::NoRule)
        };
        match verdict {
            Verdict::Pass(_) => {
                if protocol == Protocol::Udp && (self.rules.is_host_address)(&tuple.dst) {
                    self.memory.insert(*tuple, (0, PASSED));
                }
            }
            Verdict::Steer(rule) => {
                self.remember(rule, protocol, tuple);
                self.counted.push(Reason::RuleSteer);
            }
            Verdict::Reject => self.counted.push(Reason::RuleReject),
            Verdict::Drop => self.counted.push(Reason::RuleDrop),
        }
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

    fn remember(&mut self, rule: RuleIndex, protocol: Protocol, tuple: &Tuple) {
        match protocol {
            Protocol::Tcp => drop(self.decisions.insert(*tuple, Decision { seen: 0, rule, worker: WORKER })),
            Protocol::Udp => drop(self.memory.insert(*tuple, (rule, WORKER))),
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
