//! One flow, as its worker and those who look at it share it.

use std::{
    fmt,
    net::SocketAddr,
    ops::Deref,
    str::FromStr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::Instant,
};

use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;
use tproxy_common::{flow::Protocol, rule::Scope};

use super::FlowTable;
use crate::flow::{ClientAddr, OriginalDst};

/// Names a flow of an instance; not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FlowId(pub u64);

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for FlowId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// What becomes of a flow at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "flags", derive(clap::ValueEnum))]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "flags", value(rename_all = "snake_case"))]
#[repr(u8)]
pub enum FlowState {
    /// The upstream has not answered yet.
    Connecting,
    /// A connection between client and upstream.
    Relaying,
    /// It is answered in place of an upstream.
    Answering,
    /// A session in which only one side has sent.
    OneWay,
    /// A session in which both sides have sent.
    TwoWay,
}

impl FlowState {
    const ALL: [Self; 5] = [Self::Connecting, Self::Relaying, Self::Answering, Self::OneWay, Self::TwoWay];

    /// The word for it in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Relaying => "relaying",
            Self::Answering => "answering",
            Self::OneWay => "one_way",
            Self::TwoWay => "two_way",
        }
    }
}

/// Which flow, and which rule selected it.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Its protocol.
    pub protocol: Protocol,
    /// The rule's scope.
    pub scope: Scope,
    /// The rule's name.
    pub rule: Arc<str>,
    /// Who began it.
    pub client: ClientAddr,
    /// Where it was going.
    pub dst: OriginalDst,
}

/// A flow that is relayed or answered.
#[derive(Debug)]
pub struct LiveFlow {
    id: FlowId,
    selection: Selection,
    began: Instant,
    upstream: OnceLock<SocketAddr>,
    up: AtomicU64,
    down: AtomicU64,
    state: AtomicU8,
    closing: AtomicBool,
    /// Of a connection; a session has none.
    task: Mutex<Option<AbortHandle>>,
    end: OnceLock<&'static str>,
}

impl LiveFlow {
    pub(super) fn new(id: FlowId, selection: Selection) -> Self {
        let state = match selection.protocol {
            Protocol::Tcp => FlowState::Connecting,
            Protocol::Udp => FlowState::OneWay,
        };
        Self {
            id,
            selection,
            began: Instant::now(),
            upstream: OnceLock::new(),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            state: AtomicU8::new(state as u8),
            closing: AtomicBool::new(false),
            task: Mutex::new(None),
            end: OnceLock::new(),
        }
    }

    /// Its name.
    #[must_use]
    pub const fn id(&self) -> FlowId {
        self.id
    }

    /// Which it is, and by which rule.
    #[must_use]
    pub const fn selection(&self) -> &Selection {
        &self.selection
    }

    /// When it was accepted.
    #[must_use]
    pub const fn began(&self) -> Instant {
        self.began
    }

    /// Where it leads, once that is known.
    #[must_use]
    pub fn upstream(&self) -> Option<SocketAddr> {
        self.upstream.get().copied()
    }

    /// Bytes from the client, and to the client.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.up.load(Relaxed), self.down.load(Relaxed))
    }

    /// What becomes of it at the moment.
    #[must_use]
    pub fn state(&self) -> FlowState {
        FlowState::ALL[usize::from(self.state.load(Relaxed))]
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<&'static str> {
        self.end.get().copied()
    }

    /// Whether somebody has asked for its end.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.load(SeqCst)
    }

    /// A connection is reset on both sides; a session waits for [`FlowTable::closing`].
    pub(super) fn close(&self) {
        self.closing.store(true, SeqCst);
        if let Some(task) = &*self.serving() {
            task.abort();
        }
    }

    /// The task that serves the connection: it ends with it.
    pub(crate) fn served_by(&self, task: AbortHandle) {
        let mut serving = self.serving();
        // Somebody may have asked just before.
        if self.is_closing() {
            task.abort();
        }
        // Another one has connected to its upstream before it was accepted, and is done.
        *serving = Some(task);
    }

    fn serving(&self) -> MutexGuard<'_, Option<AbortHandle>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn leads_to(&self, upstream: SocketAddr) {
        // A flow leads to one upstream.
        let _ = self.upstream.set(upstream);
    }

    pub(crate) fn set_state(&self, state: FlowState) {
        self.state.store(state as u8, Relaxed);
    }

    /// Bytes from and to the client, in all.
    pub(crate) fn set_bytes(&self, up: u64, down: u64) {
        self.up.store(up, Relaxed);
        self.down.store(down, Relaxed);
    }

    /// Says how it ended, before it is dropped.
    pub fn ended(&self, how: &'static str) {
        let _ = self.end.set(how);
    }
}

/// A flow's place in the table, which it leaves when this is dropped.
#[derive(Debug)]
pub struct LiveEntry {
    flow: Arc<LiveFlow>,
    place: usize,
    table: Arc<FlowTable>,
}

impl LiveEntry {
    pub(super) const fn new(flow: Arc<LiveFlow>, place: usize, table: Arc<FlowTable>) -> Self {
        Self { flow, place, table }
    }

    /// A further handle, which does not keep it in the table.
    pub(crate) fn share(&self) -> Arc<LiveFlow> {
        Arc::clone(&self.flow)
    }
}

impl Deref for LiveEntry {
    type Target = LiveFlow;

    fn deref(&self) -> &LiveFlow {
        &self.flow
    }
}

impl Drop for LiveEntry {
    fn drop(&mut self) {
        self.table.leave(self.place);
    }
}
