//! The command line of `tproxy`.
//!
//! [`cli`] is what can be said on it. [`run`] is `tproxy run` from start to end; [`control`] is what an operator sees of
//! it, [`metrics`] what Prometheus does, [`ask`] and [`top`] are the commands that show it. [`doctor`], [`explain`],
//! [`trace`] and [`send`] are the subcommands of these names.
//! What runs is in the library `tproxy`, `tproxy bench` in `tproxy-bench`.

pub mod ask;
pub mod cli;
pub mod control;
pub mod doctor;
#[cfg(test)]
mod example;
pub mod explain;
pub mod logging;
pub mod metrics;
pub mod run;
pub mod send;
pub mod top;
pub mod trace;
