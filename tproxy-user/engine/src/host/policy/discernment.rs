//! Whether the routing rules of others tell what is relayed from what it is relayed for.

use std::collections::BTreeSet;

use super::{RoutingRule, uid_for};
use crate::{family::Family, host::local_table::RT_TABLE_LOCAL, mark::Mark};

// linux/rtnetlink.h
const RT_TABLE_UNSPEC: u32 = 0;
const RT_TABLE_DEFAULT: u32 = 253;
pub(crate) const RT_TABLE_MAIN: u32 = 254;

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

impl RoutingRule {
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
}
