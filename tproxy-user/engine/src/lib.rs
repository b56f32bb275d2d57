//! An eBPF-assisted transparent interceptor: TCP connections and UDP datagrams to *arbitrary destinations* are
//! steered into user space and relayed, answered or refused there, without iptables.
//!
//! [`intercept`] is for programs that take connections themselves: a [`config::Config`] says which, an
//! [`instance::Instance`] has them come. `cargo xtask interface` keeps what is public here from changing unnoticed; what
//! is hidden from the documentation is for the other packages of this workspace and may change at any time.
//!
//! Where to begin reading: [`instance`] is what runs; [`plan`] says which tc hooks the rules need, [`policy`] compiles
//! the rules, [`datapath`] holds the eBPF programs and maps, [`host`] everything else that is changed on the host; [`tcp`]
//! is the way of a connection and [`udp`] that of a datagram, in the threads of [`worker`] and over sockets made by
//! [`socket`]. [`flows`] are the tables of what is live.
//! The way of a packet is in the crate `tproxy-ebpf`, the commands in `tproxy-cli`.

#[doc(hidden)]
pub mod arrivals;
pub mod config;
mod counts;
#[doc(hidden)]
pub mod datapath;
mod decider;
#[doc(hidden)]
pub mod family;
pub mod flow;
#[doc(hidden)]
pub mod flows;
#[doc(hidden)]
pub mod generation;
#[doc(hidden)]
pub mod host;
pub mod instance;
pub mod intercept;
#[doc(hidden)]
pub mod latency;
mod limits;
mod live;
#[doc(hidden)]
pub mod mark;
mod pattern;
#[doc(hidden)]
pub mod plan;
#[doc(hidden)]
pub mod policy;
#[doc(hidden)]
pub mod socket;
mod source;
#[doc(hidden)]
pub mod tcp;
#[doc(hidden)]
pub mod udp;
#[doc(hidden)]
pub mod upstreams;
#[doc(hidden)]
pub mod way;
#[doc(hidden)]
pub mod worker;

pub use host::InstanceName;
pub use mark::{Bits, Mark};
pub use socket::{SocketError, datagram_from};
