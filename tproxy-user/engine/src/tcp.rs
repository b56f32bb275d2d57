//! TCP from accept to close: the way of a connection.
//!
//! A [`Worker`](crate::worker::Worker) is one thread with its own runtime and its own listeners; nothing is shared
//! between workers but what is read only. In each of them
//!
//! 1. `accept` takes connections off the listeners and finds out the client, the original destination
//!    and, from the datapath by way of [`Decisions`], the rule that selected the flow;
//!    (where the upstream is to be connected first, `hold` gets the first packet before it is accepted, has `upstream`
//!    connect, and then lets it in or answers it)
//! 2. `session` does what the rule's action says, one task a connection:
//! 3. `upstream` connects from the `source` that the rule wants, while the client is watched, and where a proxy is to
//!    stand for the original destination, `dialogue` has what it is told; or `respond` answers in place of a server;
//! 4. `relay` moves bytes, a `pipe` for each direction, and passes on how each side ends;
//! 5. `connection` writes down how it went: a line at accept, a line at close, the [`TcpCounters`].
//!
//! A worker with many connections stays on its own CPUs: `affinity`.
//!
//! An idle connection holds no buffer: a pipe borrows one from the worker's `buffers` for a read and
//! keeps it only while the other side does not take what was read. What comes in large pieces goes by a `conduit`,
//! untouched.
//! Every socket resets its peer when it is dropped (see [`socket`](crate::socket)), so whatever cuts a
//! connection off needs to do no more than drop it; only an orderly end has to be asked for.

mod accept;
mod affinity;
mod buffers;
mod check;
mod conduit;
mod connection;
mod counters;
mod dialogue;
mod hold;
mod keepalive;
mod pipe;
mod relay;
mod respond;
mod service;
mod session;
mod upstream;

pub(crate) use affinity::Affinity;
pub use counters::{End, Snapshot, TcpCounters};
pub use dialogue::rehearse;
pub use hold::{Syn, SynSource, Syns};
pub(crate) use service::Service;
pub use service::Setup;

use std::time::Duration;

use tproxy_common::abi::Origin;

use crate::{
    flow::{ClientAddr, OriginalDst},
    generation::RuleNumber,
};

/// What the datapath decided when it saw a flow's first packet.
pub trait Decisions: Send {
    /// Hands out, once, what was decided about the flow; `None` when the datapath has no record of it.
    fn take(&mut self, client: ClientAddr, dst: OriginalDst) -> Option<Decided>;
    /// Has the listener of its worker accept a connection whose first packet was held.
    fn admit(&mut self, syn: &Syn);
    /// Has an application of this host accept one, as without us, until [`Self::take`].
    fn leave_alone(&mut self, syn: &Syn);
    /// A first packet is no longer held.
    fn release(&mut self, client: ClientAddr, dst: OriginalDst);
    /// A destination was reached: for so long, connections to it need not be held.
    fn reached(&mut self, dst: OriginalDst, lasting: Duration);
    /// A destination was not reached, whatever was the case before.
    fn unreached(&mut self, dst: OriginalDst);
}

/// What the datapath decided about a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decided {
    /// The rule that selected it.
    pub rule: RuleNumber,
    /// How its first packet came.
    pub origin: Origin,
}

#[cfg(test)]
mod tests;
