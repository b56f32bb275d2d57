//! The rules' answer to a flow's first packet. No I/O: every table is asked through [`Lookups`], which the
//! datapath implements over its maps and user space over the compiled tables.

use crate::{
    addr::Addr,
    flow::{Flow, Protocol, Tuple},
    packet::{Kind, Packet, Piece},
    rule::{ActionKind, RuleIndex, RuleSet, Scope, first_common},
    verdict::{Reason, Verdict},
};

/// One compiled generation of the rules, a table a dimension. `None` of a set means that the table does not
/// hold what it should, and no rule matches.
pub trait Lookups {
    /// Whether packets to `addr` are delivered on this host by its own routing.
    fn is_host_address(&self, addr: &Addr) -> bool;
    /// Whether NAT of this host may send elsewhere what is for one of its addresses (published ports).
    fn is_publishing(&self, protocol: Protocol) -> bool;
    /// Rules of a scope and protocol.
    fn by_scope(&self, scope: Scope, protocol: Protocol) -> Option<&RuleSet>;
    /// Rules that a source address satisfies.
    fn by_source(&self, addr: &Addr) -> Option<&RuleSet>;
    /// Rules that a destination address satisfies.
    fn by_destination(&self, addr: &Addr) -> Option<&RuleSet>;
    /// Rules that a destination port (host byte order) satisfies.
    fn by_port(&self, port: u16) -> Option<&RuleSet>;
    /// Rules that an interface satisfies.
    fn by_interface(&self, ifindex: u32) -> Option<&RuleSet>;
    /// Rules that the sender's user id satisfies.
    fn by_uid(&self, uid: u32) -> Option<&RuleSet>;
    /// Rules that the sender's cgroup, or one above it, satisfies.
    fn by_cgroup(&self) -> Option<&RuleSet>;
    /// Rules for any destination port.
    fn for_any_port(&self) -> Option<&RuleSet>;
    /// Rules that must not be got round: see [`STRICT_SET`](crate::abi::STRICT_SET).
    fn strict(&self) -> Option<&RuleSet>;
    /// What a rule does.
    fn action(&self, rule: RuleIndex) -> ActionKind;

    /// [`first_match_among`], which the datapath has verified by itself.
    #[inline(always)]
    fn first_match_among(&self, scope: Scope, flow: &Flow, port: &RuleSet) -> Option<RuleIndex>
    where
        Self: Sized,
    {
        first_match_among(scope, flow, self, port)
    }
}

/// What becomes of a flow whose first packet is seen in `scope`. Of one that is for an address of this host, and which a rule of
/// scope `forwarded` selects all the same: what becomes of it if NAT sends it elsewhere.
#[inline(always)]
pub fn decide<L: Lookups>(scope: Scope, flow: &Flow, tables: &L) -> Verdict {
    if is_never_intercepted(scope, flow) {
        return Verdict::Pass(Reason::NeverIntercepted);
    }
    // Scope `inbound` is about the host's own addresses, the others about everything else; and what is published at one is
    // for somebody else.
    let is_for_host = tables.is_host_address(&flow.tuple.dst);
    let may_be_published =
        is_for_host && matches!(scope, Scope::Forwarded) && tables.is_publishing(flow.protocol);
    if is_for_host != matches!(scope, Scope::Inbound) && !may_be_published {
        return Verdict::Pass(Reason::HostAddress);
    }
    // A local client is none of scope `inbound`'s business, and may be our own connection to the application. In scope
    // `forwarded` somebody feigns an address of ours, and of IPv6 the kernel forwards that.
    let is_from_host = !matches!(scope, Scope::Outbound) && tables.is_host_address(&flow.tuple.src);
    if is_from_host && matches!(scope, Scope::Inbound) {
        return Verdict::Pass(Reason::HostAddress);
    }
    let Some(rule) = first_match(scope, flow, tables) else {
        return Verdict::Pass(match () {
            () if may_be_published || is_from_host => Reason::HostAddress,
            () if flow.tuple.dst.is_link_local() => Reason::NeverIntercepted,
            () => Reason::NoRule,
        });
    };
    match tables.action(rule) {
        ActionKind::Pass if may_be_published => Verdict::Pass(Reason::HostAddress),
        ActionKind::Pass => Verdict::Pass(Reason::RulePass),
        ActionKind::Drop => Verdict::Drop,
        // The answer would be for this host.
        ActionKind::Reject if is_from_host => Verdict::Drop,
        ActionKind::Reject => Verdict::Reject,
        ActionKind::Steer | ActionKind::SteerReached | ActionKind::SteerConnected => {
            if !is_from_host && !is_left_alone(flow) {
                return Verdict::Steer(rule);
            }
            match is_strict(rule, tables) {
                true if !is_from_host && is_dhcp(flow) => Verdict::Steer(rule),
                true => Verdict::Unreadable,
                false if is_from_host => Verdict::Pass(Reason::HostAddress),
                false => Verdict::Pass(Reason::NeverIntercepted),
            }
        }
    }
}

/// Whether only a strict rule is about it: it is DHCP, or nobody can be answered: at port 0, or, beyond the link, at an address
/// of the link. A server may not want to answer.
///
/// For the datapath a function of its own, which spares the stack of its caller.
#[cfg_attr(target_arch = "bpf", inline(never))]
#[cfg_attr(not(target_arch = "bpf"), inline(always))]
fn is_left_alone(flow: &Flow) -> bool {
    let Tuple { src, dst, sport, .. } = &flow.tuple;
    matches!(flow.protocol, Protocol::Udp) && *sport == [0, 0]
        || !src.is_v4() && src.is_link_local() && !dst.is_link_local()
        || is_dhcp(flow)
}

/// Whether no rule may select the flow, by its addresses and ports alone.
#[inline(always)]
#[must_use]
pub fn is_never_intercepted(scope: Scope, flow: &Flow) -> bool {
    // Nobody can listen on port 0. Without DHCP this host loses its address; that of others may be meant by a rule.
    has_special_address(&flow.tuple)
        || flow.tuple.dport == [0, 0]
        || !matches!(scope, Scope::Forwarded) && is_dhcp(flow)
}

/// That rules select a link-local destination only where they name it as a host is the table's to say.
#[inline(always)]
fn has_special_address(tuple: &Tuple) -> bool {
    tuple.src.is_special() || tuple.dst.is_special()
}

/// Whether a rule must not be got round.
#[inline(always)]
pub fn is_strict<L: Lookups>(rule: RuleIndex, tables: &L) -> bool {
    tables.strict().is_some_and(|strict| strict.contains(rule))
}

/// How much of a packet can be read that is [`Kind::Unreadable`] or [`Kind::Hidden`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Readable {
    /// Its ports.
    Ports,
    /// Its ports; and it is the first part of a TCP header, which is parted for no other end than to get by (RFC 1858).
    PartedHeader,
    /// TCP or UDP, and no more.
    Protocol,
    /// Its addresses.
    Addresses,
}

impl Readable {
    /// That of a packet.
    #[inline(always)]
    #[must_use]
    pub const fn of(packet: &Packet) -> Self {
        match (packet.kind, packet.tuple.dport, packet.protocol, packet.piece) {
            (Kind::Hidden, ..) => Self::Addresses,
            (_, [0, 0], ..) => Self::Protocol,
            (.., Protocol::Tcp, Piece::First { .. }) => Self::PartedHeader,
            _ => Self::Ports,
        }
    }
}

/// What becomes of a packet of which not all can be read. Whoever receives it may see more in it than we do, so that it passes
/// only where no rule is got round.
#[inline(always)]
pub fn decide_unreadable<L: Lookups>(
    scope: Scope,
    flow: &mut Flow,
    readable: Readable,
    tables: &L,
) -> Verdict {
    let Tuple { src, dst, .. } = &flow.tuple;
    let passes = has_special_address(&flow.tuple)
        || tables.is_host_address(dst)
        || matches!(scope, Scope::Inbound) && tables.is_host_address(src);
    if !passes && is_caught(scope, flow, readable, tables) {
        Verdict::Unreadable
    } else {
        Verdict::Pass(Reason::Malformed)
    }
}

#[inline(always)]
fn is_caught<L: Lookups>(scope: Scope, flow: &mut Flow, readable: Readable, tables: &L) -> bool {
    match readable {
        Readable::Ports | Readable::PartedHeader => match first_match(scope, flow, tables) {
            None => false,
            Some(rule) if is_strict(rule, tables) => true,
            Some(rule) => {
                matches!(readable, Readable::PartedHeader) && !matches!(tables.action(rule), ActionKind::Pass)
            }
        },
        Readable::Protocol => may_be_strict(scope, flow, tables),
        Readable::Addresses => {
            let [tcp, udp] = Protocol::ALL;
            flow.protocol = tcp;
            if may_be_strict(scope, flow, tables) {
                return true;
            }
            flow.protocol = udp;
            may_be_strict(scope, flow, tables)
        }
    }
}

/// Whether the flow could be one, had it the right port, that a strict rule selects.
#[cfg_attr(target_arch = "bpf", inline(never))]
#[cfg_attr(not(target_arch = "bpf"), inline(always))]
fn may_be_strict<L: Lookups>(scope: Scope, flow: &Flow, tables: &L) -> bool {
    let (Some(strict), Some(any_port)) = (tables.strict(), tables.for_any_port()) else { return false };
    let Some(rule) = tables.first_match_among(scope, flow, strict) else { return false };
    // One that comes before it and does not look at ports would select the flow anyway.
    tables.first_match_among(scope, flow, any_port).is_none_or(|before| rule <= before)
}

/// From a port of DHCP to one (RFC 2131, 4.1; RFC 8415, 7.2): whoever has only the latter uses the port for something else.
#[cfg_attr(target_arch = "bpf", inline(never))]
#[cfg_attr(not(target_arch = "bpf"), inline(always))]
fn is_dhcp(flow: &Flow) -> bool {
    let Tuple { dst, sport, dport, .. } = &flow.tuple;
    let ports = if dst.is_v4() { [67, 68] } else { [546, 547] };
    let is_one = |port: &[u8; 2]| ports.contains(&u16::from_be_bytes(*port));
    matches!(flow.protocol, Protocol::Udp) && is_one(sport) && is_one(dport)
}

/// Whether a rule may select the datagram of which a fragment is seen in scope `forwarded` before the one with the ports.
#[inline(always)]
pub fn may_select<L: Lookups>(flow: &Flow, tables: &L) -> bool {
    if has_special_address(&flow.tuple) || tables.is_host_address(&flow.tuple.dst) {
        return false;
    }
    first_addressed(flow, tables).is_some()
}

/// Whether a rule may select something that arrives by an interface in scope `forwarded`.
#[inline(always)]
pub fn may_arrive_by<L: Lookups>(ifindex: u32, protocol: Protocol, tables: &L) -> bool {
    let sets = (tables.by_scope(Scope::Forwarded, protocol), tables.by_interface(ifindex));
    matches!(sets, (Some(forwarded), Some(by_it)) if first_common(&[forwarded, by_it]).is_some())
}

/// Whether such a fragment may be of a reply to an upstream socket that bears its client's address.
#[inline(always)]
pub fn may_be_reply<L: Lookups>(flow: &Flow, tables: &L) -> bool {
    let client = &flow.tuple.dst;
    if client.is_special() || client.is_link_local() || tables.is_host_address(client) {
        return false;
    }
    let clients = (tables.by_scope(Scope::Forwarded, flow.protocol), tables.by_source(client));
    matches!(clients, (Some(forwarded), Some(from_it)) if first_common(&[forwarded, from_it]).is_some())
}

#[inline(always)]
fn first_addressed<L: Lookups>(flow: &Flow, tables: &L) -> Option<RuleIndex> {
    first_common(&[
        tables.by_scope(Scope::Forwarded, flow.protocol)?,
        tables.by_source(&flow.tuple.src)?,
        tables.by_destination(&flow.tuple.dst)?,
        tables.by_interface(flow.ifindex)?,
    ])
}

#[inline(always)]
fn first_match<L: Lookups>(scope: Scope, flow: &Flow, tables: &L) -> Option<RuleIndex> {
    tables.first_match_among(scope, flow, tables.by_port(u16::from_be_bytes(flow.tuple.dport))?)
}

/// The first rule that selects a flow, of those that its port satisfies.
#[inline(always)]
pub fn first_match_among<L: Lookups>(
    scope: Scope,
    flow: &Flow,
    tables: &L,
    port: &RuleSet,
) -> Option<RuleIndex> {
    let scoped = tables.by_scope(scope, flow.protocol)?;
    let source = tables.by_source(&flow.tuple.src)?;
    let destination = tables.by_destination(&flow.tuple.dst)?;
    let interface = tables.by_interface(flow.ifindex)?;
    if !matches!(scope, Scope::Outbound) {
        return first_common(&[scoped, source, destination, port, interface]);
    }
    let uid = tables.by_uid(flow.uid)?;
    let cgroup = tables.by_cgroup()?;
    first_common(&[scoped, source, destination, port, interface, uid, cgroup])
}
