//! The live flows, for whoever looks at them from outside of the workers.
//!
//! Each worker has a [`FlowTable`]. A connection or session enters it once and keeps a guard, [`LiveEntry`], by which it notes
//! what it moves: plain stores to memory of its own, without a lock or a system call. Whoever looks takes the table's
//! lock for some flows at a time, so that the worker never waits for long.

mod filter;
mod follow;
mod live;
mod shown;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

pub use filter::{EndpointFilter, Filter};
use follow::Followers;
pub use follow::{Followed, Follower};
pub use live::{FlowId, FlowState, LiveEntry, LiveFlow, Selection};
pub use shown::{FlowProtocol, FlowScope, ShownFlow};
use slab::Slab;
use tokio::sync::Notify;
use tproxy_common::flow::Protocol;

use crate::flow::{ClientAddr, ClientNetwork, OriginalDst};

/// Flows looked at while a worker may have to wait.
const AT_ONCE: usize = 1024;

/// The live flows of one worker.
#[derive(Debug)]
pub struct FlowTable {
    flows: Mutex<Slab<Arc<LiveFlow>>>,
    /// The next flow's number; those of the workers of an instance interlace.
    next: AtomicU64,
    step: u64,
    /// Some session is to be closed: sessions have no task that could be told.
    closing: Notify,
    followers: Arc<Followers>,
}

impl FlowTable {
    /// Enters a flow until the guard is dropped.
    #[must_use]
    pub fn enter(self: &Arc<Self>, selection: Selection) -> LiveEntry {
        let id = FlowId(self.next.fetch_add(self.step, Relaxed));
        let flow = Arc::new(LiveFlow::new(id, selection));
        let place = self.flows().insert(Arc::clone(&flow));
        self.followers.tell(|| Followed::Began(Arc::clone(&flow)));
        LiveEntry::new(flow, place, Arc::clone(self))
    }

    fn leave(&self, place: usize) {
        let flow = self.flows().remove(place);
        self.followers.tell(|| Followed::Ended(flow));
    }

    /// Waits until some session is to be closed; [`LiveFlow::is_closing`] says which.
    pub(crate) async fn closing(&self) {
        self.closing.notified().await;
    }

    /// Has a connection end of a client who has too many: it is reset on both sides.
    pub(crate) fn close_one_of(&self, client: ClientNetwork) {
        let is_one = |flow: &LiveFlow| {
            let Selection { protocol, client: of, .. } = flow.selection();
            *protocol == Protocol::Tcp && of.network() == client && !flow.is_closing()
        };
        let one = self.flows().iter().map(|(_, flow)| flow).find(|flow| is_one(flow)).cloned();
        if let Some(flow) = one {
            flow.close();
        }
    }

    fn flows(&self) -> MutexGuard<'_, Slab<Arc<LiveFlow>>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn select(&self, filter: &Filter, selected: &mut Vec<Arc<LiveFlow>>) {
        for start in (0..).step_by(AT_ONCE) {
            let flows = self.flows();
            if start >= flows.capacity() {
                return;
            }
            let some = (start..start + AT_ONCE).filter_map(|place| flows.get(place));
            selected.extend(some.filter(|flow| filter.selects(flow)).cloned());
        }
    }
}

/// The live flows of an instance.
#[derive(Debug, Clone)]
pub struct Flows {
    tables: Arc<[Arc<FlowTable>]>,
    followers: Arc<Followers>,
}

impl Flows {
    /// Of so many workers, with none yet.
    #[must_use]
    pub fn of_workers(workers: usize) -> Self {
        let followers = Arc::<Followers>::default();
        let table = |worker| {
            Arc::new(FlowTable {
                flows: Mutex::default(),
                next: AtomicU64::new(worker),
                step: workers as u64,
                closing: Notify::new(),
                followers: Arc::clone(&followers),
            })
        };
        Self { tables: (1..=workers as u64).map(table).collect(), followers }
    }

    /// A worker's table.
    ///
    /// # Panics
    /// When there are not so many workers.
    #[must_use]
    pub fn table(&self, worker: usize) -> Arc<FlowTable> {
        Arc::clone(&self.tables[worker])
    }

    /// The flows that a filter selects, oldest first. They go on meanwhile.
    #[must_use]
    pub fn select(&self, filter: &Filter) -> Vec<Arc<LiveFlow>> {
        let mut selected = Vec::new();
        for table in &*self.tables {
            table.select(filter, &mut selected);
        }
        selected.sort_unstable_by_key(|flow| (flow.began(), flow.id()));
        selected
    }

    /// Whether a flow is live.
    pub(crate) fn has(&self, protocol: Protocol, client: ClientAddr, dst: OriginalDst) -> bool {
        let is_it = |flow: &LiveFlow| {
            let selection = flow.selection();
            (selection.protocol, selection.client, selection.dst) == (protocol, client, dst)
        };
        self.tables.iter().any(|table| table.flows().iter().any(|(_, flow)| is_it(flow)))
    }

    /// Has the flows end that a filter selects: connections are reset on both sides. Says how many.
    #[must_use]
    pub fn close(&self, filter: &Filter) -> usize {
        let mut closed = 0;
        for table in &*self.tables {
            let mut selected = Vec::new();
            table.select(filter, &mut selected);
            for flow in &selected {
                flow.close();
            }
            closed += selected.len();
            table.closing.notify_one();
        }
        closed
    }

    /// Hears of every flow that begins or ends from now on, until it is dropped.
    #[must_use]
    pub fn follow(&self) -> Follower {
        Follower::new(Arc::clone(&self.followers))
    }
}

#[cfg(test)]
mod tests;
