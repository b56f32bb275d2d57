//! One thread, one runtime, its own listeners.

use std::{cell::RefCell, io, mem, net::SocketAddr, panic::resume_unwind, rc::Rc, sync::Arc, thread};

use socket2::Socket;
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    sync::watch,
    task::{JoinSet, LocalSet},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Decisions, Limits, TcpCounters, accept, buffers::Buffers};
use crate::{
    config::{Rule, Timeouts},
    mark::Mark,
};

/// What a worker is made of.
pub struct WorkerSetup {
    /// Shown in the thread's name; it is `tproxy-w0` for 0.
    pub index: usize,
    /// Sockets of [`socket::listener`](crate::socket::listener), already known to the datapath.
    pub listeners: Vec<Socket>,
    /// What all listeners of the instance are bound to, to tell connections to ourselves.
    pub bound: Arc<[SocketAddr]>,
    /// The rules that [`RuleIndex`](super::RuleIndex) counts.
    pub rules: Arc<[Rule]>,
    /// How many connections each of them may have.
    pub limits: Limits,
    /// Time limits of a connection; the one of the stop is the caller's business.
    pub timeouts: Timeouts,
    /// The mark of the instance, for upstream sockets.
    pub mark: Mark,
    /// Who knows which rule selected a flow.
    pub decisions: Box<dyn Decisions>,
    /// Where this worker counts.
    pub counters: Arc<TcpCounters>,
}

/// A running worker. Dropping it stops it, without waiting.
///
/// A stop has two steps. When no new flow is decided any more, wait for [`Worker::drained`] as long as
/// is wanted: the listeners stay open, since a client whose first packet was answered may yet come.
/// Then, when nothing is steered any more, [`Worker::stop_now`] and [`Worker::join`].
pub struct Worker {
    thread: thread::JoinHandle<()>,
    stop: CancellationToken,
    live: watch::Receiver<usize>,
    _stop_when_dropped: DropGuard,
}

impl Worker {
    /// Starts a worker in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the system has no thread or no descriptor left for it.
    pub fn spawn(mut setup: WorkerSetup) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let listeners = {
            let _inside = runtime.enter();
            let register = |socket: Socket| TcpListener::from_std(socket.into());
            mem::take(&mut setup.listeners).into_iter().map(register).collect::<io::Result<Vec<_>>>()?
        };
        let (live, live_receiver) = watch::channel(0);
        let stop = CancellationToken::new();
        let name = format!("tproxy-w{}", setup.index);
        let thread = thread::Builder::new().name(name).spawn({
            let stop = stop.clone();
            move || serve(&runtime, listeners, &Shared::new(setup, live), &stop)
        })?;
        let _stop_when_dropped = stop.clone().drop_guard();
        Ok(Self { thread, stop, live: live_receiver, _stop_when_dropped })
    }

    /// Connections accepted that have not ended.
    #[must_use]
    pub fn live(&self) -> usize {
        *self.live.borrow()
    }

    /// Waits until no connection is live, or the worker has ended.
    pub async fn drained(&self) {
        // The error says that the worker has ended.
        let _ = self.live.clone().wait_for(|live| *live == 0).await;
    }

    /// Waits until the worker has ended: by [`Worker::stop_now`], or by a panic, which [`Worker::join`]
    /// then returns.
    pub async fn ended(&self) {
        let mut live = self.live.clone();
        while live.changed().await.is_ok() {}
    }

    /// Resets every live connection on both sides, closes the listeners and ends the worker.
    pub fn stop_now(&self) {
        self.stop.cancel();
    }

    /// Blocks until the worker has ended.
    ///
    /// # Errors
    /// The payload of the panic that ended it.
    pub fn join(self) -> thread::Result<()> {
        self.thread.join()
    }
}

/// What the connections of a worker have in common.
pub(super) struct Shared {
    pub(super) bound: Arc<[SocketAddr]>,
    pub(super) rules: Arc<[Rule]>,
    pub(super) limits: Limits,
    pub(super) timeouts: Timeouts,
    pub(super) mark: Mark,
    pub(super) decisions: RefCell<Box<dyn Decisions>>,
    pub(super) counters: Arc<TcpCounters>,
    pub(super) live: watch::Sender<usize>,
    pub(super) buffers: Buffers,
}

impl Shared {
    pub(super) fn new(setup: WorkerSetup, live: watch::Sender<usize>) -> Rc<Self> {
        Rc::new(Self {
            bound: setup.bound,
            rules: setup.rules,
            limits: setup.limits,
            timeouts: setup.timeouts,
            mark: setup.mark,
            decisions: RefCell::new(setup.decisions),
            counters: setup.counters,
            live,
            buffers: Buffers::default(),
        })
    }
}

/// The life of a worker's thread.
fn serve(runtime: &Runtime, listeners: Vec<TcpListener>, shared: &Rc<Shared>, stop: &CancellationToken) {
    // When it is dropped at the end, so are the connections' sockets, and that resets them.
    let connections = LocalSet::new();
    connections.block_on(runtime, async {
        let mut accepting = JoinSet::new();
        for listener in listeners {
            accepting.spawn_local(accept::accept_from(listener, Rc::clone(shared)));
        }
        tokio::select! {
            () = stop.cancelled() => {}
            // Accepting never ends but by a panic, and without it a worker is of no use.
            Some(Err(error)) = accepting.join_next() => resume_unwind(error.into_panic()),
        }
    });
}
