//! An eBPF-assisted transparent interceptor: TCP connections and UDP datagrams to *arbitrary destinations* are
//! steered into user space and relayed, answered or refused there, without iptables.
//!
//! [`intercept`] is for programs that take connections themselves.
//!
//! Where to begin reading: [`instance`] is what runs; [`plan`] says which tc hooks the rules need, [`policy`] compiles
//! the rules, [`datapath`] holds the eBPF programs and maps, [`host`] everything else that is changed on the host; [`tcp`]
//! is the way of a connection and [`udp`] that of a datagram, in the threads of [`worker`] and over sockets made by
//! [`socket`]. [`flows`] are the tables of what is live.
//! The way of a packet is in the crate `tproxy-ebpf`, the commands in `tproxy-cli`.

pub mod config;
mod counts;
pub mod datapath;
pub mod family;
pub mod flow;
pub mod flows;
pub mod generation;
pub mod host;
pub mod instance;
pub mod intercept;
pub mod latency;
mod live;
pub mod mark;
pub mod plan;
pub mod policy;
pub mod socket;
mod source;
pub mod tcp;
pub mod udp;
pub mod worker;
