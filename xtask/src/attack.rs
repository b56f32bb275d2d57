//! `cargo xtask attack`: the scenarios that try to get by, for longer than a test run has the time for.

use anyhow::Result;

use crate::{
    host::{self, TOOLS},
    process::run,
    test,
};

/// What the scenarios multiply their numbers by.
const TIMES: &str = "TPROXY_ATTACK_TIMES";

/// Runs the scenarios that try to get by what rules say, and shows how often they tried (root)
#[derive(clap::Args)]
pub(crate) struct Args {
    /// So many times what a test run tries; of what is made up at random, 20,000 flows
    #[arg(long, default_value_t = 50)]
    times: u32,
    /// Some of them, by name
    #[arg(last = true)]
    filter: Vec<String>,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    host::require_root("attack")?;
    host::require_tools(TOOLS)?;
    let mut scenarios = test::with_bpf_file_system();
    scenarios.args([
        "test",
        "--locked",
        "--workspace",
        "--test=scenarios",
        "--",
        "--nocapture",
        "--test-threads=1",
    ]);
    if args.filter.is_empty() {
        scenarios.arg("attack::");
    }
    run(scenarios.args(&args.filter).env(TIMES, args.times.to_string()))
}
