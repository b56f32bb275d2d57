//! Every promise of `tproxy`, on the real kernel path: client – gateway – server namespaces, real programs.
//! Needs root, and fails without. `scenarios forwarded::` runs the tests of one module.

mod bench;
mod clean;
mod config;
mod errors;
mod forwarded;
mod inbound;
mod instances;
mod links;
mod matching;
mod mtu;
mod never;
mod on_exit;
mod outbound;
mod ports;
mod relay;
mod rig;
mod stop;
mod support;
mod sysctls;
mod udp;
