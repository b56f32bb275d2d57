//! Sessions through a worker in the middle of three namespaces, to which iptables' TPROXY steers what the datapath would.

mod ends;
mod limits;
mod looked_at;
mod nat;
mod relaying;
mod rig;
