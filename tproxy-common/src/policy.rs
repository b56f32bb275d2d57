//! The rules' answer to a flow's first packet. No I/O: every table is asked through [`Lookups`], which the
//! datapath implements over its maps and user space over the compiled tables.

use crate::{
    addr::Addr,
    flow::{Flow, Protocol},
    rule::{ActionKind, RuleIndex, RuleSet, Scope, first_common},
    verdict::{Reason, Verdict},
};

/// One compiled generation of the rules, a table a dimension. `None` of a set means that the table does not
/// hold what it should, and no rule matches.
pub trait Lookups {
    /// Whether packets to `addr` are delivered on this host by its own routing.
    fn is_host_address(&self, addr: &Addr) -> bool;
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
    /// What a rule does.
    fn action(&self, rule: RuleIndex) -> ActionKind;
}

/// What becomes of a flow whose first packet is seen in `scope`.
#[inline(always)]
pub fn decide<L: Lookups>(scope: Scope, flow: &Flow, tables: &L) -> Verdict {
    if flow.tuple.dst.is_special() || flow.tuple.src.is_special() || flow.tuple.dport == [0, 0] {
        return Verdict::Pass(Reason::NeverIntercepted);
    }
    // Scope `inbound` is about the host's own addresses, the others about everything else.
    if tables.is_host_address(&flow.tuple.dst) != matches!(scope, Scope::Inbound) {
        return Verdict::Pass(Reason::HostAddress);
    }
    // A local client is none of scope `inbound`'s business, and may be our own connection to the application.
    if matches!(scope, Scope::Inbound) && tables.is_host_address(&flow.tuple.src) {
        return Verdict::Pass(Reason::HostAddress);
    }
    let Some(rule) = first_match(scope, flow, tables) else {
        return Verdict::Pass(Reason::NoRule);
    };
    match tables.action(rule) {
        ActionKind::Steer => Verdict::Steer(rule),
        ActionKind::Reject => Verdict::Reject,
        ActionKind::Drop => Verdict::Drop,
        ActionKind::Pass => Verdict::Pass(Reason::RulePass),
    }
}

#[inline(always)]
fn first_match<L: Lookups>(scope: Scope, flow: &Flow, tables: &L) -> Option<RuleIndex> {
    let scoped = tables.by_scope(scope, flow.protocol)?;
    let source = tables.by_source(&flow.tuple.src)?;
    let destination = tables.by_destination(&flow.tuple.dst)?;
    let port = tables.by_port(u16::from_be_bytes(flow.tuple.dport))?;
    let interface = tables.by_interface(flow.ifindex)?;
    if !matches!(scope, Scope::Outbound) {
        return first_common(&[scoped, source, destination, port, interface]);
    }
    let uid = tables.by_uid(flow.uid)?;
    let cgroup = tables.by_cgroup()?;
    first_common(&[scoped, source, destination, port, interface, uid, cgroup])
}
