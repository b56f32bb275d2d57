//! Policy routing: the `ip rule`s and the `local default` route that deliver steered packets locally,
//! and the question whether somebody else has the mark or the table.

mod discernment;
mod rules;

use std::{collections::BTreeSet, io};

pub use discernment::Discernment;
pub(crate) use discernment::RT_TABLE_MAIN;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage, RuleUidRange},
};
use netlink_sys::protocols::NETLINK_ROUTE;
pub use rules::{RoutingRule, rules};
pub(super) use rules::{confusable, selectors};
use serde::{Deserialize, Serialize};

use super::{
    Change, HostError, Identity,
    local_table::{LOOPBACK, RouteFilter, destination, routes},
    netlink::Netlink,
};
use crate::family::Family;

/// Whether to make or to take back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    Add,
    Delete,
}

/// A rule of those that take the place of one for each interface, where there are many.
///
/// What leaves is looked up as if it came in by `lo`, and so are reverse lookups (`fib_validate_source()`), which bear the
/// mark under `src_valid_mark`, as replies do under `fwmark_reflect`. They must not be delivered to this host, so they go
/// past the rule for all. Where `lo` is hooked itself, its packets cannot be told from them, and the rule for all is alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Common {
    /// `pref PRIORITY iif lo fwmark STEER/MASK goto PRIORITY+1`
    PastLoopback,
    /// `pref PRIORITY fwmark STEER/MASK lookup TABLE`
    All,
    /// `pref PRIORITY+1 fwmark STEER/MASK nop`, where the first leads.
    Landing,
    /// `pref PRIORITY iif lo fwmark LANDING/MASK lookup TABLE`, in place of one for `lo` with the steer mark: beside other
    /// interfaces under `src_valid_mark`, reverse lookups for what these bring would be delivered by that.
    OnLoopback,
}

/// One of our `ip rule`s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which<'a> {
    /// `pref PRIORITY iif IIF fwmark STEER/MASK lookup TABLE`
    From(&'a str),
    /// For all interfaces.
    Common(Common),
    /// `pref PRIORITY fwmark OWN/MASK uidrange UID-UID lookup TABLE`: see [`uid_for`].
    Way(u32),
}

/// A user id by which a socket of ours leaves by the routes of a table, whatever other rules say of its packets: rules know
/// of a socket its addresses, its mark and its user id (`sk->sk_uid`), and of the three the last one means nothing to
/// anybody else once a packet has the own mark. No users have numbers as high as these.
#[must_use]
pub const fn uid_for(table: u32) -> Option<u32> {
    // Two of the numbers mean that there is no user.
    if table < FIRST_UID - 2 { Some(FIRST_UID + table) } else { None }
}

/// The reverse of [`uid_for`].
#[must_use]
pub const fn table_for(uid: u32) -> Option<u32> {
    uid.checked_sub(FIRST_UID)
}

/// Lower ones are users'.
const FIRST_UID: u32 = 1 << 31;

/// An `ip rule` of ours, of protocol `kernel`: systemd-networkd deletes rules and routes of every other protocol.
pub(super) fn rule(deed: Deed, identity: &Identity, family: Family, which: Which<'_>) -> io::Result<()> {
    let netlink = Netlink::open(NETLINK_ROUTE)?;
    let add = |which| {
        let message = RouteNetlinkMessage::NewRule(message(identity, family, which));
        netlink.request(message, NLM_F_CREATE | NLM_F_EXCL)
    };
    let delete = |which| netlink.request(RouteNetlinkMessage::DelRule(message(identity, family, which)), 0);
    match (deed, which) {
        // Of two rules with one preference the older one is asked first.
        (Deed::Add, Which::Common(Common::PastLoopback)) => {
            let was_there = delete(Which::Common(Common::All)).is_ok();
            add(which)?;
            if was_there { add(Which::Common(Common::All)) } else { Ok(()) }
        }
        (Deed::Add, _) => add(which),
        (Deed::Delete, _) => delete(which),
    }
}

fn message(identity: &Identity, family: Family, which: Which<'_>) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family.into();
    let after = identity.priority.saturating_add(1);
    let (action, priority) = match which {
        Which::From(_) | Which::Common(Common::All | Common::OnLoopback) | Which::Way(_) => {
            (RuleAction::ToTable, identity.priority)
        }
        Which::Common(Common::PastLoopback) => (RuleAction::Goto, identity.priority),
        Which::Common(Common::Landing) => (RuleAction::Nop, after),
    };
    message.header.action = action;
    let mark = match which {
        Which::Way(_) => identity.mark.own(),
        Which::Common(Common::OnLoopback) => identity.mark.landing(),
        Which::From(_) | Which::Common(_) => identity.mark.steer(),
    };
    message.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::FwMark(mark),
        RuleAttribute::FwMask(identity.mark.mask()),
        RuleAttribute::Protocol(RouteProtocol::Kernel),
    ];
    message.attributes.extend(match which {
        Which::From(iif) => {
            vec![RuleAttribute::Iifname(iif.to_owned()), RuleAttribute::Table(identity.table)]
        }
        Which::Common(Common::All) => vec![RuleAttribute::Table(identity.table)],
        Which::Common(Common::OnLoopback) => {
            vec![RuleAttribute::Iifname(LOOPBACK_NAME.to_owned()), RuleAttribute::Table(identity.table)]
        }
        Which::Common(Common::PastLoopback) => {
            vec![RuleAttribute::Iifname(LOOPBACK_NAME.to_owned()), RuleAttribute::Goto(after)]
        }
        Which::Common(Common::Landing) => Vec::new(),
        Which::Way(table) => {
            let uid =
                uid_for(table).map(|uid| RuleAttribute::UidRange(RuleUidRange { start: uid, end: uid }));
            uid.into_iter().chain([RuleAttribute::Table(table)]).collect()
        }
    });
    message
}

/// It cannot be called otherwise (`dev_change_name()` leaves that to `lo`'s being up, which steering needs).
const LOOPBACK_NAME: &str = "lo";

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

/// Refuses a mark or a table that somebody uses, and finds what is exactly ours: to be called when nothing of our own is on
/// record, and nobody lives who has it on a record of their own.
pub(super) fn refuse_foreign(identity: &Identity) -> Result<Vec<Change>, HostError> {
    let seen = SeenRouting::take(identity)?;
    let mut ours = Vec::new();
    for rule in seen.rules.iter().filter(|rule| rule.selects_by(identity.mark)) {
        match rule.change(identity) {
            Some(change) => ours.push(change),
            None => return Err(HostError::MarkTaken { mark: identity.mark, rule: rule.to_string() }),
        }
    }
    if let Some(route) = seen.foreign_route {
        return Err(HostError::TableTaken { table: identity.table, route });
    }
    ours.extend(seen.routes.into_iter().map(|family| Change::LocalRoute { family }));
    Ok(ours)
}

/// What the kernel says about rules and routes that may be ours.
#[derive(Debug)]
pub(super) struct SeenRouting {
    rules: Vec<RoutingRule>,
    /// Families whose `local default` of ours is there.
    routes: BTreeSet<Family>,
    /// Any other route of the table, as `ip route` writes it.
    foreign_route: Option<String>,
}

impl SeenRouting {
    pub(super) fn take(identity: &Identity) -> Result<Self, HostError> {
        let mut seen = Self { rules: rules()?, routes: BTreeSet::new(), foreign_route: None };
        routes(
            RouteFilter { kind: RouteType::Unspec, table: Some(identity.table) },
            |route| match our_route(&route) {
                Some(family) => drop(seen.routes.insert(family)),
                None => drop(seen.foreign_route.get_or_insert_with(|| written(&route, identity.table))),
            },
        )?;
        Ok(seen)
    }

    /// Whether the rule is there.
    pub(super) fn has_rule(&self, identity: &Identity, change: &Change) -> bool {
        self.rules.iter().any(|rule| rule.change(identity).as_ref() == Some(change))
    }

    /// Whether the route is there.
    pub(super) fn has_route(&self, family: Family) -> bool {
        self.routes.contains(&family)
    }
}

/// The family, if it is a `local default dev lo` of protocol `kernel`.
fn our_route(route: &RouteMessage) -> Option<Family> {
    let family = Family::BOTH.into_iter().find(|family| route.header.address_family == (*family).into())?;
    let by_loopback =
        route.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Oif(LOOPBACK)));
    let is_ours = route.header.kind == RouteType::Local
        && route.header.protocol == RouteProtocol::Kernel
        && by_loopback
        && destination(route).is_some_and(|prefix| prefix.prefix_len() == 0);
    is_ours.then_some(family)
}

fn written(route: &RouteMessage, table: u32) -> String {
    let kind = format!("{:?}", route.header.kind).to_lowercase();
    let to = destination(route).map_or_else(|| "?".to_owned(), |prefix| prefix.to_string());
    format!("{kind} {to} table {table}")
}

/// A route of a table, if it has any, as `ip route` writes it.
///
/// # Errors
/// [`HostError::Netlink`].
pub fn route_in(table: u32) -> Result<Option<String>, HostError> {
    let mut found = None;
    routes(RouteFilter { kind: RouteType::Unspec, table: Some(table) }, |route| {
        found.get_or_insert_with(|| written(&route, table));
    })?;
    Ok(found)
}
