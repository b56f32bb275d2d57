//! Connections through a worker on loopback. They need `CAP_NET_ADMIN` for the marks.

mod dialogues;
mod ends;
mod inside;
mod looked_at;
mod relaying;
mod responding;
mod rig;
mod stopping;
