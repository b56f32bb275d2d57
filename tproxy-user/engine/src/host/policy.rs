//! Policy routing: the `ip rule`s and the `local default` route that deliver steered packets locally,
//! and the question whether somebody else has the mark or the table.

use std::{fmt, io};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::{
    HostError, Identity,
    local_table::{LOOPBACK, RouteFilter, destination, routes},
    netlink::Netlink,
};
use crate::{family::Family, mark::Mark};

/// Whether to make or to take back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    Add,
    Delete,
}

/// `ip rule add pref PRIORITY iif IIF fwmark STEER/MASK lookup TABLE protocol kernel`.
///
/// Scoped by `iif`, so that `src_valid_mark` and `tcp_fwmark_accept` cannot apply it to reverse lookups.
/// systemd-networkd deletes rules and routes of every other protocol.
pub(super) fn rule(deed: Deed, identity: &Identity, family: Family, iif: &str) -> io::Result<()> {
    let mut message = RuleMessage::default();
    message.header.family = family.into();
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(identity.priority),
        RuleAttribute::Iifname(iif.to_owned()),
        RuleAttribute::FwMark(identity.mark.steer()),
        RuleAttribute::FwMask(identity.mark.mask()),
        RuleAttribute::Table(identity.table),
        RuleAttribute::Protocol(RouteProtocol::Kernel),
    ];
    let netlink = Netlink::open(NETLINK_ROUTE)?;
    match deed {
        Deed::Add => netlink.request(RouteNetlinkMessage::NewRule(message), NLM_F_CREATE | NLM_F_EXCL),
        Deed::Delete => netlink.request(RouteNetlinkMessage::DelRule(message), 0),
    }
}

/// `ip route add local default dev lo table TABLE proto kernel`.
pub(super) fn local_route(deed: Deed, identity: &Identity, family: Family) -> io::Result<()> {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family.into(),
        protocol: RouteProtocol::Kernel,
        // IPv6 routes have no scope.
        scope: if family == Family::V4 { RouteScope::Host } else { RouteScope::Universe },
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Table(identity.table), RouteAttribute::Oif(LOOPBACK)];
    let netlink = Netlink::open(NETLINK_ROUTE)?;
    match deed {
        Deed::Add => netlink.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL),
        Deed::Delete => netlink.request(RouteNetlinkMessage::DelRoute(message), 0),
    }
}

/// Refuses a mark or a table that somebody uses; to be called when nothing of our own is in place.
pub(super) fn refuse_foreign(identity: &Identity) -> Result<(), HostError> {
    let on_our_mark = rules()?.into_iter().find(|rule| rule.selects_by(identity.mark));
    if let Some(rule) = on_our_mark {
        return Err(HostError::MarkTaken { mark: identity.mark, rule: rule.to_string() });
    }
    match route_in(identity.table)? {
        Some(route) => Err(HostError::TableTaken { table: identity.table, route }),
        None => Ok(()),
    }
}

/// A route of a table, if it has any, as `ip route` writes it.
///
/// # Errors
/// [`HostError::Netlink`].
pub fn route_in(table: u32) -> Result<Option<String>, HostError> {
    let mut found = None;
    routes(RouteFilter { kind: RouteType::Unspec, table: Some(table) }, |route| {
        found.get_or_insert_with(|| {
            let kind = format!("{:?}", route.header.kind).to_lowercase();
            let to = destination(&route).map_or_else(|| "?".to_owned(), |prefix| prefix.to_string());
            format!("{kind} {to} table {table}")
        });
    })?;
    Ok(found)
}

/// Whether a packet that bears only mark `a` is selected by `b`, or the other way round.
///
/// Fields that do not overlap are no conflict: bit fields are how marks are shared (Kubernetes, Tailscale).
/// Zero selects what nobody marked.
pub(super) fn confusable(a: (u32, u32), b: (u32, u32)) -> bool {
    let selects = |packet: u32, (value, mask): (u32, u32)| value != 0 && packet & mask == value;
    selects(a.0, b) || selects(b.0, a)
}

/// Both marks of an instance with what they are compared under.
pub(super) fn selectors(mark: Mark) -> [(u32, u32); 2] {
    [(mark.steer(), mark.mask()), (mark.own(), mark.mask())]
}

/// Every `ip rule` of this network namespace.
///
/// # Errors
/// [`HostError::Netlink`].
pub fn rules() -> Result<Vec<Rule>, HostError> {
    let mut found = Vec::new();
    let mut dump = || -> io::Result<()> {
        let netlink = Netlink::open(NETLINK_ROUTE)?;
        for family in Family::BOTH {
            let mut request = RuleMessage::default();
            request.header.family = family.into();
            netlink.dump(RouteNetlinkMessage::GetRule(request), |answer| {
                if let RouteNetlinkMessage::NewRule(rule) = answer
                    && rule.header.family == family.into()
                {
                    let rule = Rule::read(family, &rule);
                    if !found.contains(&rule) {
                        found.push(rule);
                    }
                }
            })?;
        }
        Ok(())
    };
    dump().map_err(|source| HostError::Netlink { action: "list the routing rules".into(), source })?;
    Ok(found)
}

/// An `ip rule`, as far as it matters to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
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
    /// It is also about something else, such as addresses or a user id.
    pub narrowed: bool,
    /// The table that is looked up, if that is what it does.
    pub table: Option<u32>,
}

impl Rule {
    fn read(family: Family, message: &RuleMessage) -> Self {
        let mut rule = Self {
            family,
            priority: 0,
            iif: None,
            mark: None,
            inverted: message.header.flags.contains(RuleFlags::Invert),
            narrowed: message.header.src_len > 0 || message.header.dst_len > 0 || message.header.tos > 0,
            table: (message.header.action == RuleAction::ToTable).then(|| message.header.table.into()),
        };
        let (mut value, mut mask) = (None, u32::MAX);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Iifname(name) => rule.iif = Some(name.clone()),
                RuleAttribute::FwMark(mark) => value = Some(*mark),
                RuleAttribute::FwMask(bits) => mask = *bits,
                RuleAttribute::Table(table) => rule.table = rule.table.map(|_| *table),
                RuleAttribute::Oifname(_)
                | RuleAttribute::UidRange(_)
                | RuleAttribute::IpProtocol(_)
                | RuleAttribute::SourcePortRange(_)
                | RuleAttribute::DestinationPortRange(_) => rule.narrowed = true,
                _ => {}
            }
        }
        rule.mark = value.map(|value| (value, mask));
        rule
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
        if self.inverted { self.narrowed || self.iif.is_some() || !selected } else { selected }
    }

    /// What deletes it.
    #[must_use]
    pub fn deletion(&self) -> String {
        let family = if self.family == Family::V6 { "ip -6" } else { "ip" };
        format!("{family} rule del pref {}", self.priority)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pref {}", self.family, self.priority)?;
        if self.inverted {
            f.write_str(" not")?;
        }
        if let Some(iif) = &self.iif {
            write!(f, " iif {iif}")?;
        }
        if let Some((value, mask)) = self.mark {
            write!(f, " fwmark {value:#x}/{mask:#x}")?;
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
    fn marks_that_select_each_others_packets_do() {
        assert!(confusable(OURS, OURS));
        assert!(confusable(OURS, (0x2000_0000, 0x2000_0000)), "a wider selector");
        assert!(confusable(OURS, (0x2000_0000, u32::MAX)), "the exact mark");
        assert!(confusable(OURS, (0x2000_0001, u32::MAX)), "ours would select theirs");
    }
}
