//! Every promise of `tproxy`, on the real kernel path: client – gateway – server namespaces, real programs.
//! Needs root, and fails without. `scenarios forwarded::` runs the tests of one module.

mod bench;
mod check;
mod clean;
mod config;
mod connect;
mod control;
mod deciding;
mod doctor;
mod errors;
mod explain;
mod firewall;
mod forwarded;
mod inbound;
mod instances;
mod library;
mod links;
mod matching;
mod mtu;
mod nat;
mod never;
mod on_exit;
mod outbound;
mod ports;
mod relay;
mod reload;
mod rig;
mod routing;
mod run_directory;
mod size;
mod stop;
mod support;
mod sysctls;
mod systemd;
mod trace;
mod udp;
