//! `cargo xtask ci`: what a change has to pass, the cheapest first.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::{
    bench, build_ebpf, fuzz, host, interface,
    process::{cargo, output, run},
    test, vm,
};

/// Runs all that a change has to pass, installing what is missing (root)
#[derive(clap::Args)]
pub(crate) struct Args {
    /// And what takes hours: more scenarios on other kernels, ten minutes of fuzzing for each parser
    #[arg(long)]
    nightly: bool,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    host::require_root("ci")?;
    let before = changes()?;
    let start = Instant::now();
    for (title, check) in CHECKS.iter().chain(NIGHTLY.iter().filter(|_| args.nightly)) {
        println!("\n==> {title} (after {} s)", start.elapsed().as_secs());
        check()?;
    }
    if changes()? != before {
        bail!("the checks changed files of the tree:\n{}", changes()?);
    }
    Ok(())
}

type Check = fn() -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("format", || run(cargo().args(["fmt", "--all", "--check"]))),
    ("lints", || {
        run(cargo().args(["clippy", "--locked", "--workspace", "--all-targets", "--", "-Dwarnings"]))
    }),
    ("documentation", || {
        let mut doc = cargo();
        doc.args(interface::DOCUMENTATION).arg("--document-private-items");
        run(doc.env("RUSTDOCFLAGS", "-Dwarnings"))
    }),
    ("the library by itself", interface::alone),
    ("interface of the library", || interface::main(&interface::Args { write: false })),
    ("eBPF object", || build_ebpf::main(&build_ebpf::Args { install: true, check: true })),
    ("lints and documentation of the eBPF programs", build_ebpf::lint),
    ("instructions of the hot paths", bench::count_instructions),
    ("other kernels", vm::smoke),
    ("tests", || test::main(&test::Args { filter: Vec::new() })),
];

const NIGHTLY: &[(&str, Check)] = &[("more on other kernels", vm::chosen), ("fuzzing", fuzz::all)];

/// What git sees as changed; the checks have to leave it as it was.
fn changes() -> Result<String> {
    output(std::process::Command::new("git").args(["status", "--porcelain"]))
}
