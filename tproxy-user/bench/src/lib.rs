//! `tproxy bench`: what interception costs on this machine, for us and for what one could pick instead.
//!
//! Each contender gets a network of its own, client – gateway – server, anew for every round: a `lane`. `rounds` runs a
//! `workload` through all lanes before it turns to the next workload, so that what is compared was measured within
//! seconds. `results` keeps the samples, `targets` compares them with what we want to reach, `report` shows them. All of
//! it happens inside an `isolation` that takes everything with it.

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
mod singly;
mod stats;
mod steering;
mod targets;
mod tools;
mod workload;

use std::{fs::File, io::Write as _, path::Path, process};

use anyhow::Context as _;
pub use args::Args;
pub use relay::{Many, without_datapath};
pub use singly::singly;
pub use steering::filler;

/// Measures as `args` say and returns what is to be shown; or, outside of the isolation, ends this process as the one
/// that did so inside.
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
    // Opened first: whether they can be written is better known before than after.
    let (json, html) = (create(args.json.as_deref())?, create(args.html.as_deref())?);
    isolation::furnish()?;
    let results = rounds::run(&plan)?;
    let report = report::Report::new(environment::Environment::look(&plan), results);
    if let Some(mut file) = json {
        file.write_all(report.json().as_bytes()).context("--json")?;
    }
    if let Some(mut file) = html {
        file.write_all(report.html().as_bytes()).context("--html")?;
    }
    Ok(report.text())
}

fn create(path: Option<&Path>) -> anyhow::Result<Option<File>> {
    path.map(|path| File::create(path).with_context(|| path.display().to_string())).transpose()
}
