//! The control socket: what an operator sees of a running instance, and asks of it.
//!
//! HTTP over a Unix socket with JSON, so that `curl --unix-socket` does for what the subcommands do. `server` has the
//! connections and their limits, `routes` says what each request means, `api` what is answered. What only the instance
//! itself knows, or can do, is a [`Command`](crate::run::Command) that its main loop carries out. `client` is the other side.

mod api;
pub mod client;
mod routes;
mod seat;
mod server;

pub use api::{
    Checked, Closed, Confirmed, Counts, Failure, FlowEvent, Reloaded, ShownDraining, ShownHook, ShownLive,
    ShownRule, ShownState, ShownUpstream, Status,
};
#[doc(hidden)]
pub use routes::{Asked, Refusal, understand};
pub use seat::{Seat, SeatError, Served};
pub use server::{Access, Server, Shown};

#[cfg(test)]
mod tests;
