//! An eBPF-assisted transparent interceptor: TCP connections and UDP datagrams to *arbitrary destinations* are
//! steered into user space and relayed, answered or refused there, without iptables.
//!
//! Where to begin reading: [`run`] is `tproxy run` from start to end; [`instance`] is what runs; [`plan`] says which
//! tc hooks the rules need, [`policy`] compiles the rules, [`datapath`] holds the eBPF programs and maps, [`host`]
//! everything else that is changed on the host; [`tcp`] is the way of a connection and [`udp`] that of a datagram, in the
//! threads of [`worker`] and over sockets made by [`socket`]. [`mod@bench`] is `tproxy bench`.
//! [`flows`] are the tables of what is live; [`control`] is what an operator sees of it, [`metrics`] what Prometheus does,
//! [`ask`] and [`top`] are the commands that show it.
//! [`doctor`], [`explain`] and [`trace`] are the subcommands of these names. [`intercept`] is for programs that take
//! connections themselves.
//! The way of a packet is in the crate `tproxy-ebpf`.

pub mod ask;
pub mod bench;
pub mod cli;
pub mod config;
pub mod control;
pub mod datapath;
pub mod doctor;
pub mod explain;
pub mod family;
pub mod flow;
pub mod flows;
pub mod generation;
pub mod host;
pub mod instance;
pub mod intercept;
pub mod latency;
mod live;
pub mod logging;
pub mod mark;
pub mod metrics;
pub mod netns;
pub mod plan;
pub mod policy;
pub mod run;
pub mod send;
pub mod socket;
mod source;
pub mod tcp;
pub mod top;
pub mod trace;
pub mod udp;
pub mod worker;
