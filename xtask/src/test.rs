//! `cargo xtask test`: all tests, on the running kernel.

use std::process::Command;

use anyhow::Result;

use crate::{
    docs,
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
    run(cargo().args(["build", "--locked", "--workspace", "--examples"]))?;
    for tests in [
        // Parser, policy, configuration, journal, …: a crate at a time, on the host.
        &["--workspace", "--lib", "--bins"][..],
        &["--workspace", "--doc"],
        // The real path through the kernel, in network namespaces.
        &["--workspace", "--test=*"],
    ] {
        run(with_bpf_file_system().args(["test", "--locked"]).args(tests).arg("--").args(&args.filter))?;
    }
    // All tests, then: what the documentation shows is one of them.
    if args.filter.is_empty() { docs::main(&docs::Args::default()) } else { Ok(()) }
}

/// cargo in a mount namespace that has a BPF file system to pin links in, which not every container has, and of which
/// nothing is left whatever ends it.
fn with_bpf_file_system() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount -t bpf bpf /sys/fs/bpf && exec \"$@\"", "sh"]);
    command.arg(cargo().get_program());
    command
}
