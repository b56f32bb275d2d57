//! An eBPF-assisted transparent interceptor: TCP connections and UDP datagrams to *arbitrary destinations* are
//! steered into user space and relayed, answered or refused there, without iptables.
//!
//! Where to begin reading: [`run`] is `tproxy run` from start to end; [`instance`] is what runs; [`plan`] says which
//! tc hooks the rules need, [`policy`] compiles the rules, [`datapath`] holds the eBPF programs and maps, [`host`]
//! everything else that is changed on the host; [`tcp`] is the way of a connection and [`udp`] that of a datagram, in the
//! threads of [`worker`] and over sockets made by [`socket`]. [`mod@bench`] is `tproxy bench`.
//! The way of a packet is in the crate `tproxy-ebpf`.

pub mod bench;
pub mod cli;
pub mod config;
pub mod datapath;
pub mod family;
pub mod flow;
pub mod host;
pub mod instance;
mod live;
pub mod logging;
pub mod mark;
pub mod netns;
pub mod plan;
pub mod policy;
pub mod run;
pub mod send;
pub mod socket;
mod source;
pub mod tcp;
pub mod udp;
pub mod worker;
