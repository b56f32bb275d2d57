//! `tproxy bench`: what interception costs on this machine, for us and for what one could pick instead.
//!
//! Each [`Contender`](contender::Contender) gets a network of its own, client – gateway – server, anew for every
//! round: a [`lane`]. [`rounds`] runs a [`workload`] through all lanes before it turns to the next workload, so that
//! what is compared was measured within seconds. [`results`] keeps the samples, [`targets`] compares them with what we
//! want to reach, [`report`] shows them. All of it happens inside an [`isolation`] that takes everything with it.

mod affinity;
mod args;
mod contender;
mod cpu;
mod environment;
mod isolation;
mod lane;
mod memory;
mod pace;
mod proxy;
mod relay;
mod report;
mod results;
mod rounds;
mod server;
mod stats;
mod steering;
mod targets;
mod tools;
mod workload;

use std::{fs, process};

use anyhow::Context as _;
pub use args::Args;
pub use relay::{Many, without_datapath};

/// Measures as `args` say and returns what is to be shown.
///
/// # Errors
/// Not root, a missing tool, or whatever keeps the networks from being built.
pub fn main(args: &Args) -> anyhow::Result<String> {
    if args.list {
        return Ok(tools::list());
    }
    let plan = args.plan()?;
    tools::require(&plan)?;
    if !isolation::is_inside() {
        process::exit(isolation::run_inside()?);
    }
    isolation::furnish()?;
    let results = rounds::run(&plan)?;
    let report = report::Report::new(environment::Environment::look(&plan), results);
    if let Some(file) = &args.json {
        fs::write(file, report.json()).with_context(|| file.display().to_string())?;
    }
    if let Some(file) = &args.html {
        fs::write(file, report.html()).with_context(|| file.display().to_string())?;
    }
    Ok(report.text())
}
