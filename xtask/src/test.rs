//! `cargo xtask test`: all tests, on the running kernel.

use anyhow::Result;

use crate::{
    host::{self, TOOLS},
    process::{cargo, run},
};

/// Installs what the tests need and runs all of them (root)
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Passed on to the test programs: names to filter by, --nocapture, …
    #[arg(last = true)]
    pub(crate) filter: Vec<String>,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    host::require_root("test")?;
    host::require_tools(TOOLS)?;
    // With `--test`, cargo leaves out the example that a scenario runs.
    run(cargo().args(["build", "--locked", "--package=tproxy-user", "--examples"]))?;
    for tests in [
        // Parser, policy, configuration, journal, …: a crate at a time, on the host.
        &["--workspace", "--lib", "--bins"][..],
        &["--workspace", "--doc"],
        // The real path through the kernel, in network namespaces.
        &["--package=tproxy-user", "--test=*"],
    ] {
        run(cargo().args(["test", "--locked"]).args(tests).arg("--").args(&args.filter))?;
    }
    Ok(())
}
