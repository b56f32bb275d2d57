//! `cargo xtask bench`: what interception costs on this machine.

mod hot_paths;

use anyhow::Result;
pub(crate) use hot_paths::main as count_instructions;

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
    /// Count the instructions of the hot paths instead, and fail when there are more than there were
    #[arg(long, conflicts_with_all = ["quick", "more"])]
    hot_paths: bool,
    /// Passed on to `tproxy bench`, such as `-- --html bench.html`
    #[arg(last = true)]
    more: Vec<String>,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    if args.hot_paths {
        return count_instructions();
    }
    host::require_root("bench")?;
    host::require_tools(TOOLS)?;
    let mut bench = cargo();
    bench.args(["run", "--release", "--locked", "--quiet", "--bin=tproxy", "--", "bench"]);
    run(bench.args(args.quick.then_some("--quick")).args(&args.more))
}
