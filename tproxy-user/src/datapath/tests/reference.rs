//! What the programs have to do with a packet, by the parser and the policy as they are in user space.

use std::collections::HashMap;

use tproxy_common::{
    abi::{APPLICATION, Decision},
    flow::{Flow, Protocol, Tuple},
    packet::{self, Kind, Packet},
    policy::decide,
    rule::{RuleIndex, Scope},
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

/// A datapath without a connection of ours, whose listener lookup is attached.
pub(super) struct Reference<'a> {
    pub(super) rules: HostLookups<'a>,
    pub(super) mark: Mark,
    pub(super) steer: Steer,
    pub(super) deciding: bool,
    /// What is remembered of the flows seen.
    pub(super) decisions: HashMap<Tuple, Decision>,
    /// Counted for the packet at hand.
    counted: Vec<Reason>,
}

impl<'a> Reference<'a> {
    pub(super) fn new(rules: HostLookups<'a>, mark: Mark, steer: Steer, deciding: bool) -> Self {
        Self { rules, mark, steer, deciding, decisions: HashMap::new(), counted: vec![] }
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
            _ => parsed.and_then(|parsed| self.course(link, hook, &parsed, seen)),
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

    fn loopback(&mut self, link: &Link, own: bool, parsed: Result<Packet, Reason>, mark: u32) -> Expected {
        if self.mark.is_steered(mark) {
            if let (Steer::SkAssign, Ok(parsed)) = (self.steer, parsed) {
                self.listener_lookup(link, &parsed.tuple);
            }
            return Expected { course: Course::Steered, mark, reasons: self.counted.clone() };
        }
        if !own {
            return Expected { course: Course::Passed, mark, reasons: vec![] };
        }
        let mut after = mark;
        if let Ok(Packet { kind: Kind::Syn, tuple, .. }) = parsed
            && self.rules.compiled.has_scope(Scope::Inbound, Protocol::Tcp)
        {
            self.decisions.insert(tuple, Decision { rule: 0, worker: APPLICATION });
            after = self.unmarked(mark);
        }
        Expected { course: Course::Passed, mark: after, reasons: vec![Reason::OwnMark] }
    }

    /// SYN decides, sockets remember; and here they remember decisions only.
    fn course(
        &mut self,
        link: &Link,
        hook: Direction,
        parsed: &Packet,
        seen: Seen<'_>,
    ) -> Result<(Course, Reason), Reason> {
        let waits_for_ack = self.listener_lookup(link, &parsed.tuple);
        let scope = match hook {
            Direction::Ingress => Scope::Forwarded,
            Direction::Egress => Scope::Outbound,
        };
        match parsed.kind {
            Kind::Syn if hook == Direction::Egress && seen.ingress_ifindex != 0 => Err(Reason::NotOurs),
            Kind::Syn => {
                let verdict = self.ask(scope, link, &parsed.tuple);
                if !matches!(verdict, Verdict::Steer(_)) && waits_for_ack {
                    self.decisions.remove(&parsed.tuple);
                }
                match verdict {
                    Verdict::Pass(reason) => Err(reason),
                    Verdict::Steer(rule) => {
                        self.remember(rule, &parsed.tuple);
                        Ok((Course::Steered, Reason::RuleSteer))
                    }
                    Verdict::Drop => Ok((Course::Dropped, Reason::RuleDrop)),
                    Verdict::Reject if can_be_answered(parsed, seen.packet) => {
                        Ok((Course::Answered, Reason::RuleReject))
                    }
                    Verdict::Reject => Ok((Course::Dropped, Reason::KernelRefused)),
                }
            }
            Kind::Ack if waits_for_ack => Ok((Course::Steered, Reason::Decided)),
            _ => Err(Reason::NotOurs),
        }
    }

    /// Whether a listener of ours would receive the packet; that is asked of the kernel first, and it of `sk_lookup`,
    /// which decides in scope `inbound`.
    fn listener_lookup(&mut self, link: &Link, tuple: &Tuple) -> bool {
        if let Some(decision) = self.decisions.get(tuple) {
            return decision.worker != APPLICATION;
        }
        if !self.rules.compiled.has_scope(Scope::Inbound, Protocol::Tcp) || !self.deciding {
            return false;
        }
        match self.ask(Scope::Inbound, link, tuple) {
            Verdict::Pass(_) => false,
            Verdict::Steer(rule) => {
                self.remember(rule, tuple);
                self.counted.push(Reason::RuleSteer);
                true
            }
            Verdict::Reject => {
                self.counted.push(Reason::RuleReject);
                false
            }
            Verdict::Drop => {
                self.counted.push(Reason::RuleDrop);
                true
            }
        }
    }

    fn ask(&self, scope: Scope, link: &Link, tuple: &Tuple) -> Verdict {
        if !self.deciding {
            return Verdict::Pass(Reason::Draining);
        }
        let flow = Flow { protocol: Protocol::Tcp, tuple: *tuple, ifindex: link.index, uid: SUPERUSER };
        decide(scope, &flow, &self.rules)
    }

    fn remember(&mut self, rule: RuleIndex, tuple: &Tuple) {
        self.decisions.insert(*tuple, Decision { rule, worker: 0 });
    }
}

/// The whole TCP header but its urgent pointer is there, whatever the lengths say.
fn can_be_answered(parsed: &Packet, bytes: &[u8]) -> bool {
    const OFFSET: usize = 12;
    const CHECKSUM_END: usize = 18;
    let header = usize::from(bytes[parsed.l4 + OFFSET] >> 4) * 4;
    bytes.len() >= parsed.l4 + if header > 20 { header } else { CHECKSUM_END }
}
