//! `cargo xtask test`: all tests, on the running kernel.

use std::{env, process::Command, thread};

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

/// Parser, policy, configuration, journal, … on the host; then, in network namespaces, the real path through the kernel.
/// The documentation's examples come last.
const ALL: &[&str] = &["test", "--locked", "--workspace"];
/// How many tests run at a time. Scenarios wait half of the time, for processes that start and for packets.
const THREADS: &str = "RUST_TEST_THREADS";
/// The same, without running it.
pub(crate) const BUILD: &[&str] = &["test", "--locked", "--workspace", "--no-run"];

pub(crate) fn main(args: &Args) -> Result<()> {
    host::require_root("test")?;
    host::require_tools(TOOLS)?;
    // One command builds all of it, and the examples that scenarios run: another choice of packages or targets would have other
    // features of the dependencies, and compile them anew.
    run(cargo().args(BUILD))?;
    let mut tests = with_bpf_file_system();
    if env::var_os(THREADS).is_none() {
        tests.env(THREADS, (2 * thread::available_parallelism()?.get()).to_string());
    }
    run(tests.args(ALL).arg("--").args(&args.filter))?;
    // All tests, then: what the documentation shows is one of them.
    if args.filter.is_empty() { docs::main(&docs::Args::default()) } else { Ok(()) }
}

/// cargo in a mount namespace that has a BPF file system to pin links in, which not every container has, and of which
/// nothing is left whatever ends it.
pub(crate) fn with_bpf_file_system() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount -t bpf bpf /sys/fs/bpf && exec \"$@\"", "sh"]);
    command.arg(cargo().get_program());
    command
}
