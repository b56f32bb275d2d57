//! What a worker needs for TCP, and has for it.

use std::{cell::RefCell, convert::Infallible, io, net::SocketAddr, rc::Rc, sync::Arc};

use socket2::Socket;
use tokio::{net::TcpListener, task::JoinSet};

use super::{
    Affinity, Decisions, Syns, TcpCounters, accept,
    buffers::Buffers,
    check,
    hold::{self, Holding},
};
use crate::{
    flows::FlowTable,
    generation::Generations,
    live::LiveCount,
    mark::Mark,
    way::{Routing, Ways},
};

/// What a worker needs for TCP.
pub struct Setup {
    /// Sockets of [`socket::listener`](crate::socket::listener), already known to the datapath.
    pub listeners: Vec<Socket>,
    /// What all listeners of the instance are bound to, to tell connections to ourselves.
    pub bound: Arc<[SocketAddr]>,
    /// The rules, with their limits. The time limit of the stop is the caller's business.
    pub generations: Generations,
    /// The mark of the instance, for upstream sockets.
    pub mark: Mark,
    /// What the host's routing rules mean to them.
    pub routing: Routing,
    /// Who knows which rule selected a flow.
    pub decisions: Box<dyn Decisions>,
    /// Where this worker counts.
    pub counters: Arc<TcpCounters>,
    /// First packets that are held, where the datapath hands them over.
    pub syns: Option<Syns>,
    /// Where its connections are while they live.
    pub flows: Arc<FlowTable>,
}

/// The TCP side of a worker, ready to be moved to its thread.
pub(crate) struct Service {
    setup: Setup,
    listeners: Vec<TcpListener>,
    live: LiveCount,
    affinity: Affinity,
}

impl Service {
    /// To be called inside the worker's runtime.
    pub(crate) fn new(mut setup: Setup, live: LiveCount, affinity: Affinity) -> io::Result<Self> {
        let register = |socket: Socket| TcpListener::from_std(socket.into());
        let listeners = setup.listeners.drain(..).map(register).collect::<io::Result<_>>()?;
        Ok(Self { setup, listeners, live, affinity })
    }

    /// Begins to accept, on the worker's thread.
    pub(crate) fn serve(mut self, serving: &mut JoinSet<Infallible>) {
        let syns = self.setup.syns.take();
        let shared = Shared::new(self.setup, self.live, self.affinity);
        if let Some(syns) = syns {
            if syns.are_of_all() {
                serving.spawn_local(check::serve(Rc::clone(&shared)));
            }
            serving.spawn_local(hold::serve(syns, Rc::clone(&shared)));
        }
        for listener in self.listeners {
            serving.spawn_local(accept::accept_from(listener, Rc::clone(&shared)));
        }
    }
}

/// What the connections of a worker have in common.
pub(super) struct Shared {
    pub(super) bound: Arc<[SocketAddr]>,
    pub(super) generations: Generations,
    pub(super) mark: Mark,
    pub(super) ways: RefCell<Ways>,
    pub(super) decisions: RefCell<Box<dyn Decisions>>,
    pub(super) counters: Arc<TcpCounters>,
    pub(super) flows: Arc<FlowTable>,
    pub(super) live: LiveCount,
    pub(super) affinity: Affinity,
    pub(super) buffers: Buffers,
    pub(super) holding: RefCell<Holding>,
}

impl Shared {
    pub(super) fn new(setup: Setup, live: LiveCount, affinity: Affinity) -> Rc<Self> {
        Rc::new(Self {
            bound: setup.bound,
            generations: setup.generations,
            mark: setup.mark,
            ways: RefCell::new(Ways::new(setup.routing, setup.mark)),
            decisions: RefCell::new(setup.decisions),
            counters: setup.counters,
            flows: setup.flows,
            live,
            affinity,
            buffers: Buffers::default(),
            holding: RefCell::default(),
        })
    }
}
