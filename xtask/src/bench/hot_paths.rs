//! Instructions of the hot paths, counted by valgrind: the same on an idle machine and on a busy one.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{
    host::{Tool, require_tools},
    process::{cargo, output, run},
};

const VALGRIND: Tool =
    Tool { command: "valgrind", package: "valgrind", reason: "counts instructions", demo: false };

/// Most instructions for going each path once: what was counted when the path was last changed, and a tenth; a quarter
/// where the seeds of a hash table matter.
const LIMITS: &[(&str, u64)] =
    &[("parser", 226), ("early-exit", 74), ("policy", 8800), ("session-table", 1200)];

/// The difference between so many times and twice as many is that of the path alone.
const TIMES: u64 = 20_000;

pub(crate) fn main() -> Result<()> {
    require_tools([&VALGRIND])?;
    run(cargo().args(["build", "--release", "--locked", "--bin=tproxy"]))?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let mut exceeded = Vec::new();
    println!("{:<15} {:>12} {:>8}", "path", "instructions", "at most");
    for (path, limit) in LIMITS {
        let count = |times| instructions(&target.join("release/tproxy"), path, times);
        let each = (count(2 * TIMES)? - count(TIMES)?) / TIMES;
        println!("{path:<15} {each:>12} {limit:>8}");
        if each > *limit {
            exceeded.push(*path);
        }
    }
    ensure!(exceeded.is_empty(), "more instructions than there were: {}", exceeded.join(", "));
    Ok(())
}

fn instructions(tproxy: &PathBuf, path: &str, times: u64) -> Result<u64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--log-fd=1"]).arg(tproxy);
    let said = output(valgrind.args(["bench-hot-path", path, &times.to_string()]))?;
    let collected = said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    collected.with_context(|| format!("valgrind should tell what it collected: {said}"))
}
