//! Policy routing: the `ip rule`s and the `local default` route that deliver steered packets locally,
//! and the question whether somebody else has the mark or the table.

use std::io;

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
    if let Some(rule) = rule_on(identity.mark)? {
        return Err(HostError::MarkTaken { mark: identity.mark, rule });
    }
    let mut found = None;
    routes(RouteFilter { kind: RouteType::Unspec, table: Some(identity.table) }, |route| {
        found.get_or_insert_with(|| {
            let kind = format!("{:?}", route.header.kind).to_lowercase();
            let to = destination(&route).map_or_else(|| "?".to_owned(), |prefix| prefix.to_string());
            format!("{kind} {to} table {}", identity.table)
        });
    })?;
    match found {
        Some(route) => Err(HostError::TableTaken { table: identity.table, route }),
        None => Ok(()),
    }
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

fn rule_on(mark: Mark) -> Result<Option<String>, HostError> {
    let mut found = None;
    let mut dump = || -> io::Result<()> {
        let netlink = Netlink::open(NETLINK_ROUTE)?;
        for family in Family::BOTH {
            let mut request = RuleMessage::default();
            request.header.family = family.into();
            netlink.dump(RouteNetlinkMessage::GetRule(request), |answer| {
                if let RouteNetlinkMessage::NewRule(rule) = answer
                    && rule.header.family == family.into()
                    && selects_by(&rule, mark)
                {
                    found.get_or_insert_with(|| describe(&rule, family));
                }
            })?;
        }
        Ok(())
    };
    dump().map_err(|source| HostError::Netlink { action: "list the routing rules".into(), source })?;
    Ok(found)
}

fn selects_by(rule: &RuleMessage, mark: Mark) -> bool {
    // `not fwmark M`, as wg-quick has it, is about everything but M.
    if rule.header.flags.contains(RuleFlags::Invert) {
        return false;
    }
    let fwmark = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::FwMark(value) => Some(*value),
        _ => None,
    });
    let fwmask = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::FwMask(mask) => Some(*mask),
        _ => None,
    });
    fwmark.is_some_and(|value| {
        selectors(mark).into_iter().any(|ours| confusable(ours, (value, fwmask.unwrap_or(u32::MAX))))
    })
}

fn describe(rule: &RuleMessage, family: Family) -> String {
    let mut text = format!("{family}");
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Priority(pref) => text += &format!(" pref {pref}"),
            RuleAttribute::Iifname(name) => text += &format!(" iif {name}"),
            RuleAttribute::FwMark(value) => text += &format!(" fwmark {value:#x}"),
            RuleAttribute::FwMask(mask) => text += &format!(" mask {mask:#x}"),
            RuleAttribute::Table(table) => text += &format!(" lookup {table}"),
            _ => {}
        }
    }
    text
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
