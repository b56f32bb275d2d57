//! Instructions of the hot paths, counted by valgrind: the same on an idle machine and on a busy one. They are those of what
//! the tests run, which checks for overflows: two to three times as many as in a release build, and as telling.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    host::{Tool, require_tools},
    process::{cargo, output, run},
    test,
};

const VALGRIND: Tool =
    Tool { command: "valgrind", package: "valgrind", reason: "counts instructions", demo: false };

/// Most instructions for going each path once: what was counted when the path was last changed, and a tenth; a quarter
/// where the seeds of a hash table matter.
const LIMITS: &[(&str, u64)] =
    &[("parser", 600), ("early-exit", 186), ("policy", 21_800), ("session-table", 1375)];

/// The difference between so many times and twice as many is that of the path alone.
const TIMES: u64 = 2_000;

pub(crate) fn main() -> Result<()> {
    require_tools([&VALGRIND])?;
    // What the tests build anyway, as they build it: nothing is compiled for these counts alone.
    run(cargo().args(test::BUILD))?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let mut exceeded = Vec::new();
    println!("{:<15} {:>12} {:>8}", "path", "instructions", "at most");
    for (path, limit) in LIMITS {
        let count = |times| instructions(&target.join("debug/examples/hot_path"), path, times);
        let each = (count(2 * TIMES)? - count(TIMES)?) / TIMES;
        println!("{path:<15} {each:>12} {limit:>8}");
        if each > *limit {
            exceeded.push(*path);
        }
    }
    ensure!(exceeded.is_empty(), "more instructions than there were: {}", exceeded.join(", "));
    Ok(())
}

fn instructions(example: &Path, path: &str, times: u64) -> Result<u64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--log-fd=1"]).arg(example);
    let said = output(valgrind.args([path, &times.to_string()]))?;
    let collected = said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    collected.with_context(|| format!("valgrind should tell what it collected: {said}"))
}
