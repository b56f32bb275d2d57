//! The `ip rule`s that there are: whose they are, and what they select.

use std::{fmt, io};

use netlink_packet_route::{
    RouteNetlinkMessage,
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;

use super::{Common, FIRST_UID, LOOPBACK_NAME, uid_for};
use crate::{
    family::Family,
    host::{Change, HostError, Identity, netlink::Netlink},
    mark::Mark,
};

/// Whether a packet that bears only mark `a` is selected by `b`, or the other way round.
///
/// Fields that do not overlap are no conflict: bit fields are how marks are shared (Kubernetes, Tailscale).
/// Zero selects what nobody marked.
pub(in crate::host) fn confusable(a: (u32, u32), b: (u32, u32)) -> bool {
    let selects = |packet: u32, (value, mask): (u32, u32)| value != 0 && packet & mask == value;
    selects(a.0, b) || selects(b.0, a)
}

/// Both marks of an instance with what they are compared under.
pub(in crate::host) fn selectors(mark: Mark) -> [(u32, u32); 2] {
    [(mark.steer(), mark.mask()), (mark.own(), mark.mask())]
}

/// Every `ip rule` of this network namespace.
///
/// # Errors
/// [`HostError::Netlink`].
pub fn rules() -> Result<Vec<RoutingRule>, HostError> {
    let mut found = Vec::new();
    let mut dump = || -> io::Result<()> {
        let netlink = Netlink::open(NETLINK_ROUTE)?;
        for family in Family::BOTH {
            let mut request = RuleMessage::default();
            request.header.family = family.into();
            let answered = netlink.dump(RouteNetlinkMessage::GetRule(request), |answer| {
                if let RouteNetlinkMessage::NewRule(rule) = answer
                    && rule.header.family == family.into()
                {
                    let rule = RoutingRule::read(family, &rule);
                    if !found.contains(&rule) {
                        found.push(rule);
                    }
                }
            });
            match answered {
                // Nobody has registered rules for it (`fib_nl_dumprule()`): `ipv6.disable=1`, or no IPv6 at all.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT) => {}
                answered => answered?,
            }
        }
        Ok(())
    };
    dump().map_err(|source| HostError::Netlink { action: "list the routing rules".into(), source })?;
    Ok(found)
}

/// An `ip rule`, as far as it matters to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingRule {
    /// Of the packets.
    pub family: Family,
    /// Its preference; rules are tried in that order.
    pub priority: u32,
    /// The interface that packets come in by; none is any.
    pub iif: Option<String>,
    /// The mark of packets, and the bits of it that count.
    pub mark: Option<(u32, u32)>,
    /// It is about the packets that the rest does not describe (`not`).
    pub inverted: bool,
    /// The user ids of senders, first and last.
    pub uids: Option<(u32, u32)>,
    /// It is also about something else, such as addresses.
    pub narrowed: bool,
    /// Among that is where packets come from: their source address.
    pub by_source: bool,
    /// Among that are protocols or ports.
    pub by_port: bool,
    /// The table that is looked up, if that is what it does.
    pub table: Option<u32>,
    /// The preference that it goes on at, if that is what it does.
    pub goto: Option<u32>,
    /// It does nothing (`nop`).
    pub idle: bool,
    /// It is of protocol `kernel`, as ours are; those that people make are of `boot`.
    pub by_kernel: bool,
}

impl RoutingRule {
    fn read(family: Family, message: &RuleMessage) -> Self {
        let mut rule = Self {
            family,
            priority: 0,
            iif: None,
            mark: None,
            inverted: message.header.flags.contains(RuleFlags::Invert),
            uids: None,
            by_source: message.header.src_len > 0,
            by_port: false,
            narrowed: message.header.src_len > 0 || message.header.dst_len > 0 || message.header.tos > 0,
            table: (message.header.action == RuleAction::ToTable).then(|| message.header.table.into()),
            goto: None,
            idle: message.header.action == RuleAction::Nop,
            by_kernel: false,
        };
        let (mut value, mut mask) = (None, u32::MAX);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Iifname(name) => rule.iif = Some(name.clone()),
                RuleAttribute::FwMark(mark) => value = Some(*mark),
                RuleAttribute::FwMask(bits) => mask = *bits,
                RuleAttribute::Table(table) => rule.table = rule.table.map(|_| *table),
                RuleAttribute::Goto(priority) => rule.goto = Some(*priority),
                RuleAttribute::Protocol(protocol) => rule.by_kernel = *protocol == RouteProtocol::Kernel,
                RuleAttribute::UidRange(range) => rule.uids = Some((range.start, range.end)),
                RuleAttribute::Oifname(_) => rule.narrowed = true,
                RuleAttribute::IpProtocol(_)
                | RuleAttribute::SourcePortRange(_)
                | RuleAttribute::DestinationPortRange(_) => (rule.narrowed, rule.by_port) = (true, true),
                _ => {}
            }
        }
        rule.mark = value.map(|value| (value, mask));
        rule
    }

    /// The change that makes it, if it is exactly one that an instance with this identity makes.
    #[must_use]
    pub fn change(&self, identity: &Identity) -> Option<Change> {
        let Self {
            family, priority, iif, mark, inverted, uids, narrowed, table, goto, idle, by_kernel, ..
        } = self;
        let after = identity.priority.saturating_add(1);
        if *inverted || *narrowed || !by_kernel {
            return None;
        }
        let own = *mark == Some((identity.mark.own(), identity.mark.mask()));
        if let (true, None, Some(table), Some((first, last))) = (own, iif, *table, *uids) {
            let fits = first == last && uid_for(table) == Some(first) && *priority == identity.priority;
            return fits.then_some(Change::Way { family: *family, table });
        }
        let common = |rule| Some(Change::CommonRule { family: *family, rule });
        let looks_up = *table == Some(identity.table) && *priority == identity.priority;
        if *mark == Some((identity.mark.landing(), identity.mark.mask())) {
            let is_by_loopback = iif.as_deref() == Some(LOOPBACK_NAME) && uids.is_none();
            return if looks_up && is_by_loopback { common(Common::OnLoopback) } else { None };
        }
        if *mark != Some((identity.mark.steer(), identity.mark.mask())) || uids.is_some() {
            return None;
        }
        match (iif, goto) {
            (Some(iif), None) if looks_up => Some(Change::Rule { family: *family, iif: iif.clone() }),
            (None, None) if looks_up => common(Common::All),
            (None, None) if *idle && *priority == after => common(Common::Landing),
            (Some(iif), Some(to))
                if iif == LOOPBACK_NAME && *to == after && *priority == identity.priority =>
            {
                common(Common::PastLoopback)
            }
            _ => None,
        }
    }

    /// Whether it selects by bits of `mark`.
    #[must_use]
    pub fn selects_by(&self, mark: Mark) -> bool {
        // `not fwmark M`, as wg-quick has it, is about everything but M.
        !self.inverted
            && self
                .mark
                .is_some_and(|theirs| selectors(mark).into_iter().any(|ours| confusable(ours, theirs)))
    }

    /// Whether it may take packets that bear the steer mark, and nothing else of a mark.
    #[must_use]
    pub fn may_take(&self, mark: Mark) -> bool {
        let selected = self.mark.is_none_or(|(value, mask)| mark.steer() & mask == value);
        // What else it is about may be any packet.
        let narrowed = self.narrowed || self.iif.is_some() || self.uids.is_some();
        if self.inverted { narrowed || !selected } else { selected }
    }

    /// Whether it may take what an instance relays, and nothing else of whose mark is known.
    #[must_use]
    pub fn may_take_relayed(&self, mark: Mark) -> bool {
        let selected = self.mark.is_none_or(|(value, mask)| mark.own() & mask == value);
        let is_of_others = self.iif.as_ref().is_some_and(|iif| iif != LOOPBACK_NAME)
            || self.uids.is_some_and(|(_, last)| last < FIRST_UID);
        if self.inverted {
            self.narrowed || self.iif.is_some() || self.uids.is_some() || !selected
        } else {
            selected && !is_of_others
        }
    }

    /// What deletes it.
    #[must_use]
    pub fn deletion(&self) -> String {
        let family = if self.family == Family::V6 { "ip -6" } else { "ip" };
        format!("{family} rule del pref {}", self.priority)
    }
}

impl fmt::Display for RoutingRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pref {}", self.family, self.priority)?;
        if self.inverted {
            f.write_str(" not")?;
        }
        if let Some(iif) = &self.iif {
            write!(f, " iif {iif}")?;
        }
        if let Some((first, last)) = self.uids {
            write!(f, " uidrange {first}-{last}")?;
        }
        if let Some((value, mask)) = self.mark {
            write!(f, " fwmark {value:#x}/{mask:#x}")?;
        }
        if let Some(priority) = self.goto {
            write!(f, " goto {priority}")?;
        }
        self.table.map_or(Ok(()), |table| write!(f, " lookup {table}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: (u32, u32) = (0x2000_0000, 0x3000_0000);

    #[test]
    fn marks_that_share_no_bits_do_not_meet() {
        assert!(!confusable(OURS, (0x4000, 0x4000)), "kube-proxy");
        assert!(!confusable(OURS, (0x40000, 0xff_0000)), "Tailscale");
        assert!(!confusable(OURS, (0x1000_0000, 0x3000_0000)), "another value of the same field");
        assert!(!confusable(OURS, (0, 0x3000_0000)), "unmarked packets");
    }

    #[test]
    fn a_rule_is_ours_only_if_all_of_it_is() {
        let ours = RoutingRule {
            family: Family::V6,
            priority: 100,
            iif: Some("lan".into()),
            mark: Some(OURS),
            inverted: false,
            uids: None,
            narrowed: false,
            by_source: false,
            by_port: false,
            table: Some(29_808),
            goto: None,
            idle: false,
            by_kernel: true,
        };
        let change = |rule: &RoutingRule| rule.change(&Identity::DEFAULT);
        assert_eq!(change(&ours), Some(Change::Rule { family: Family::V6, iif: "lan".into() }));
        let all = RoutingRule { iif: None, ..ours.clone() };
        assert_eq!(change(&all), Some(Change::CommonRule { family: Family::V6, rule: Common::All }));
        let past = RoutingRule { iif: Some("lo".into()), table: None, goto: Some(101), ..ours.clone() };
        assert_eq!(
            change(&past),
            Some(Change::CommonRule { family: Family::V6, rule: Common::PastLoopback })
        );
        let landing = RoutingRule { idle: true, table: None, priority: 101, ..all.clone() };
        assert_eq!(change(&landing), Some(Change::CommonRule { family: Family::V6, rule: Common::Landing }));
        let landed = Some((Mark::DEFAULT.landing(), Mark::DEFAULT.mask()));
        let on_loopback = RoutingRule { iif: Some("lo".into()), mark: landed, ..ours.clone() };
        assert_eq!(
            change(&on_loopback),
            Some(Change::CommonRule { family: Family::V6, rule: Common::OnLoopback })
        );
        let own = (Mark::DEFAULT.own(), Mark::DEFAULT.mask());
        let uid = uid_for(77).unwrap();
        let way = RoutingRule { mark: Some(own), uids: Some((uid, uid)), table: Some(77), ..all.clone() };
        assert_eq!(change(&way), Some(Change::Way { family: Family::V6, table: 77 }));
        let others = [
            RoutingRule { priority: 99, ..ours.clone() },
            RoutingRule { mark: Some((OURS.0, u32::MAX)), ..ours.clone() },
            RoutingRule { inverted: true, ..ours.clone() },
            RoutingRule { narrowed: true, ..ours.clone() },
            RoutingRule { table: Some(100), ..ours.clone() },
            RoutingRule { by_kernel: false, ..ours },
            RoutingRule { iif: Some("lan".into()), ..on_loopback.clone() },
            RoutingRule { table: Some(100), ..on_loopback },
            RoutingRule { goto: Some(200), ..past },
            RoutingRule { table: Some(78), ..way.clone() },
            RoutingRule { uids: None, ..way.clone() },
            RoutingRule { mark: Some(OURS), ..way },
        ];
        for rule in &others {
            assert_eq!(change(rule), None, "{rule}");
        }
    }

    #[test]
    fn marks_that_select_each_others_packets_do() {
        assert!(confusable(OURS, OURS));
        assert!(confusable(OURS, (0x2000_0000, 0x2000_0000)), "a wider selector");
        assert!(confusable(OURS, (0x2000_0000, u32::MAX)), "the exact mark");
        assert!(confusable(OURS, (0x2000_0001, u32::MAX)), "ours would select theirs");
    }
}
