//! Policy routing: the `ip rule`s and the `local default` route that deliver steered packets locally,
//! and the question whether somebody else has the mark or the table.

use std::{collections::BTreeSet, fmt, io};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage, RuleUidRange},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{
    Change, HostError, Identity,
    local_table::{LOOPBACK, RT_TABLE_LOCAL, RouteFilter, destination, routes},
    netlink::Netlink,
};
use crate::{family::Family, mark::Mark};

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
        Which::From(_) | Which::Common(Common::All) | Which::Way(_) => {
            (RuleAction::ToTable, identity.priority)
        }
        Which::Common(Common::PastLoopback) => (RuleAction::Goto, identity.priority),
        Which::Common(Common::Landing) => (RuleAction::Nop, after),
    };
    message.header.action = action;
    let mark = if let Which::Way(_) = which { identity.mark.own() } else { identity.mark.steer() };
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
        if *mark != Some((identity.mark.steer(), identity.mark.mask())) || uids.is_some() {
            return None;
        }
        let common = |rule| Some(Change::CommonRule { family: *family, rule });
        let looks_up = *table == Some(identity.table) && *priority == identity.priority;
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

    /// Whether it belongs to an instance, or stands in every namespace: packets of clients and of instances meet it alike,
    /// or are meant to be told apart.
    fn is_of_the_system(&self) -> bool {
        const USUAL: [u32; 3] = [RT_TABLE_LOCAL, RT_TABLE_MAIN, RT_TABLE_DEFAULT];
        self.by_kernel && (self.mark.is_some() || self.table.is_some_and(|table| USUAL.contains(&table)))
    }

    /// Whether it may send a packet that bears the own mark beside its bits another way than one without.
    fn tells_by_mark(&self, mark: Mark) -> bool {
        self.mark.is_some_and(|(_, mask)| mask & mark.mask() != 0)
    }

    /// Whether it may send what a client sends another way than what a socket of ours sends there for it.
    fn tells_clients(&self, mark: Mark) -> bool {
        self.iif.is_some()
            || self.by_source
            || self.by_port
            || self.uids.is_some()
            || self.tells_by_mark(mark)
    }

    /// The same for what a process of this host sends: a socket of ours has its address and its user id.
    fn tells_processes(&self, mark: Mark) -> bool {
        self.by_port || self.tells_by_mark(mark)
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

/// What the routing rules of others mean to a family's flows that are relayed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Discernment {
    /// Clients' packets may leave otherwise than a socket's of ours.
    pub clients: bool,
    /// So may what processes of this host send.
    pub processes: bool,
    /// It may depend on protocol and ports.
    pub ports: bool,
    /// The tables that packets may leave by; none where nobody is told from us.
    pub tables: BTreeSet<u32>,
}

impl Discernment {
    /// What `rules` mean to flows of a family.
    #[must_use]
    ///
    /// Where a rule of ours chooses a way (`chosen`), all tables that others' rules name may be it.
    pub fn of(rules: &[RoutingRule], family: Family, mark: Mark, chosen: bool) -> Self {
        let rules: Vec<_> =
            rules.iter().filter(|rule| rule.family == family && !rule.is_of_the_system()).collect();
        let any = |tells: &dyn Fn(&RoutingRule) -> bool| rules.iter().any(|rule| tells(rule));
        let (clients, processes) =
            (any(&|rule| rule.tells_clients(mark)), any(&|rule| rule.tells_processes(mark)));
        let mut tables = BTreeSet::new();
        if clients || processes || chosen && !rules.is_empty() {
            tables.extend(rules.iter().filter_map(|rule| rule.table).chain([RT_TABLE_MAIN]));
            // It is asked first by all; and of no packet is it known that no rule selected it.
            for table in [RT_TABLE_LOCAL, RT_TABLE_UNSPEC] {
                tables.remove(&table);
            }
            tables.retain(|table| uid_for(*table).is_some());
        }
        Self { clients, processes, ports: any(&|rule| rule.by_port), tables }
    }
}

// linux/rtnetlink.h
const RT_TABLE_UNSPEC: u32 = 0;
const RT_TABLE_DEFAULT: u32 = 253;
const RT_TABLE_MAIN: u32 = 254;

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
