//! UDP from a flow's first datagram to its last: the way of a datagram.
//!
//! A [`Worker`](crate::worker::Worker) is one thread; all flows of one client endpoint meet the same worker, and nothing is
//! shared between workers but what is read only. In each of them
//!
//! 1. `service` is the loop: it waits by `readiness` for sockets that have something, and deals with each of them in turn,
//!    one `batch` at a time, so that no flow keeps the others waiting;
//! 2. `listener` takes the first datagrams of flows, with their original destinations, and those of flows that have no
//!    socket of their own;
//! 3. `forward` moves datagrams, several at once where it can, by sockets that are `channel`s; where one goes, it asks
//! 4. the `relay`, which knows all sessions and decides everything, and does no I/O: `begin` makes a session of a flow that
//!    the datapath, by way of [`Memory`], has a rule for; `course` says where its datagrams go, and hears what became of them;
//!    `own` says which sessions have a socket of their own towards the client; `errors` has clients told of ICMP errors, at a
//!    `rate`; `moving` has sessions go on from another address when theirs is
//!    the host's no more;
//! 5. `io` has the sockets. A busy session's is bound to the original destination *and connected* to the client, to which the
//!    kernel's own lookup brings the flow from then on; an upstream socket may be that of a `mapping`, which the sessions of a
//!    client endpoint share;
//! 6. `table` knows the sessions in the order of their use, and which of them ends for lack of use or of room;
//! 7. `session` writes down how it went, `counters` how it all went.
//!
//! All of it is plain state that one task owns: a session is a place in a table and at most two descriptors, and it ends
//! where it is ended. Nothing is allocated for a datagram, except for one that is handed over.
//!
//! **Order.** Datagrams that arrived before the session's socket was connected wait in the listener. That socket is read
//! only after the listener was found empty, or was read for as long as it could have been full.
//!
//! **No socket of its own.** A session that is not busy has none towards the client, so that daemons of this host can bind the
//! original destination's port at all addresses (see `relay/own.rs`); and one that is has none where somebody holds the port
//! already, as in scope `inbound` an application always may. Its datagrams go on to come by the listener, and what is sent to
//! the client leaves by a raw socket.

mod batch;
mod channel;
mod counters;
#[doc(hidden)]
pub mod dns;
mod endpoints;
mod forward;
mod io;
mod listener;
mod mapping;
mod rate;
mod raw;
mod readiness;
mod relay;
mod service;
mod session;
mod table;

pub use counters::{End, Snapshot, UdpCounters};
pub use endpoints::Endpoints;
pub(crate) use service::Service;
pub use service::{Setup, Sockets};
#[doc(hidden)]
pub use table::exercise_sessions;

use tproxy_common::{abi::Origin, packet::Fragmenting};

use crate::{
    flow::{ClientAddr, OriginalDst},
    generation::RuleNumber,
};

/// Why a flow is steered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selected {
    /// A rule selects it; how its first datagram came, and whether routers might have fragmented that, where it was seen.
    By(RuleNumber, Origin, Option<Fragmenting>),
    /// No rule does: fragments of a datagram were taken before the one that says so was seen. It is to be sent on as it is.
    Carry,
}

/// What the datapath remembers of UDP flows.
pub trait Memory: Send {
    /// Why the flow is steered, as long as the datapath remembers that.
    fn selected(&mut self, client: ClientAddr, dst: OriginalDst) -> Option<Selected>;
    /// Has the client's datagrams to a peer steered as if `rule` selected them, unless the datapath remembers something of
    /// them.
    fn expect(&mut self, client: ClientAddr, peer: OriginalDst, rule: RuleNumber, origin: &Origin);
    /// Has the datapath forget the flow: a socket of its own receives it from now on, or it has ended.
    fn forget(&mut self, client: ClientAddr, dst: OriginalDst);
}

#[cfg(test)]
mod tests;
