//! `cargo xtask bench`: what interception costs on this machine.

use anyhow::Result;

use crate::{
    host::{self, TOOLS},
    process::{cargo, run},
};

/// Installs what `tproxy bench` compares with and runs its release build (root)
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Under five minutes, for a first impression
    #[arg(long)]
    quick: bool,
    /// Passed on to `tproxy bench`, such as `-- --html bench.html`
    #[arg(last = true)]
    more: Vec<String>,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    host::require_root("bench")?;
    host::require_tools(TOOLS)?;
    let mut bench = cargo();
    bench.args([
        "run",
        "--release",
        "--locked",
        "--quiet",
        "--package=tproxy-user",
        "--bin=tproxy",
        "--",
        "bench",
    ]);
    run(bench.args(args.quick.then_some("--quick")).args(&args.more))
}
