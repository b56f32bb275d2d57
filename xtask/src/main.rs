//! The project's tasks: `cargo xtask --help`.
#![expect(clippy::print_stdout, reason = "what a task says is its product")]

mod attack;
mod bench;
mod build_ebpf;
mod ci;
mod demo;
mod dist;
mod docs;
mod fuzz;
mod host;
mod interface;
mod process;
mod test;
mod verify;
mod vm;

use std::{path::Path, process::ExitCode};

use clap::Parser;

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "The project's tasks")]
enum Task {
    BuildEbpf(build_ebpf::Args),
    /// Shows what the running kernel's verifier makes of the committed object (root)
    Verify,
    Interface(interface::Args),
    Test(test::Args),
    Docs(docs::Args),
    Fuzz(fuzz::Args),
    Attack(attack::Args),
    Vm(vm::Args),
    Bench(bench::Args),
    /// Builds what is installed: target/dist/tproxy, and its debug information in tproxy.debug
    Dist,
    /// Shows tproxy at work in three network namespaces of its own (root)
    Demo,
    Ci(ci::Args),
}

fn main() -> ExitCode {
    match task() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn task() -> anyhow::Result<()> {
    // Every task sees the workspace's root, wherever it was started.
    std::env::set_current_dir(workspace())?;
    match Task::parse() {
        Task::BuildEbpf(args) => build_ebpf::main(&args),
        Task::Verify => verify::main(),
        Task::Interface(args) => interface::main(&args),
        Task::Test(args) => test::main(&args),
        Task::Docs(args) => docs::main(&args),
        Task::Fuzz(args) => fuzz::main(&args),
        Task::Attack(args) => attack::main(&args),
        Task::Vm(args) => vm::main(&args),
        Task::Bench(args) => bench::main(&args),
        Task::Dist => dist::main(),
        Task::Demo => demo::main(),
        Task::Ci(args) => ci::main(&args),
    }
}

fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
