//! `cargo xtask fuzz`: libFuzzer chooses what the targets of `tproxy-user/fuzz` read, by what it makes them run through.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    host::{Tool, require_tools},
    process::{cargo, output, run},
};

const CXX: Tool = Tool { command: "g++", package: "g++", reason: "compiles libFuzzer", demo: false };

/// What cargo-fuzz tells the compiler but for the sanitizers, which a stable compiler does not have: to count what is run
/// through, and to say what is compared with what.
const INSTRUMENTATION: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Coverflow-checks",
];

/// Bytes of an input: more than the longest datagram is asked for by no parser.
const LONGEST: u32 = 4096;

/// Seconds for one input, of which the slowest needs milliseconds.
const SLOWEST: u32 = 10;

const MINUTES: u64 = 10;

/// Has libFuzzer look for bytes that a parser does not get along with
#[derive(clap::Args)]
pub(crate) struct Args {
    /// For each target
    #[arg(long, default_value_t = MINUTES)]
    minutes: u64,
    /// Adds to the corpus in the tree what was found to be worth it
    #[arg(long)]
    keep: bool,
    /// Some of the directories in tproxy-user/fuzz/corpus (default: all)
    targets: Vec<String>,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    require_tools([&CXX])?;
    let corpora = Path::new("tproxy-user/fuzz/corpus");
    let targets = if args.targets.is_empty() { names(corpora)? } else { args.targets.clone() };
    for target in &targets {
        ensure!(
            corpora.join(target).is_dir(),
            "there is no target {target}; there are {}",
            names(corpora)?.join(", ")
        );
    }
    let fuzzer = build()?;
    for target in &targets {
        println!("\n==> {target}, for {} minutes", args.minutes);
        look(&fuzzer, target, &corpora.join(target), args)?;
    }
    Ok(())
}

/// What CI does at night.
pub(crate) fn all() -> Result<()> {
    main(&Args { minutes: MINUTES, keep: false, targets: Vec::new() })
}

fn names(corpora: &Path) -> Result<Vec<String>> {
    let directories = fs::read_dir(corpora).with_context(|| corpora.display().to_string())?;
    let mut names: Vec<_> = directories
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

/// In a directory of its own: all is compiled otherwise than it is for anything else.
fn build() -> Result<PathBuf> {
    let version = output(Command::new("rustc").arg("-vV"))?;
    let host =
        version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names a host")?;
    let directory = crate::workspace().join("target/fuzz");
    let mut build = cargo();
    // With the target named, what runs while compiling is not instrumented.
    build
        .args([
            "build",
            "--locked",
            "--package=tproxy-fuzz",
            "--features=libfuzzer",
            "--release",
            "--target",
            host,
        ])
        .env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\x1f"))
        .env("CARGO_TARGET_DIR", &directory);
    run(&mut build)?;
    Ok(directory.join(host).join("release/fuzz"))
}

fn look(fuzzer: &Path, target: &str, kept: &Path, args: &Args) -> Result<()> {
    let found = crate::workspace().join("target/fuzz/corpus").join(target);
    fs::create_dir_all(&found).with_context(|| found.display().to_string())?;
    let command = || {
        let mut command = Command::new(fuzzer);
        command.env("TPROXY_FUZZ", target);
        command
    };
    // What was found goes to the first of the directories; what breaks something, beside it.
    let broken = format!("-artifact_prefix={}/", found.parent().context("it has one")?.display());
    run(command()
        .args([
            format!("-max_total_time={}", args.minutes * 60),
            format!("-max_len={LONGEST}"),
            format!("-timeout={SLOWEST}"),
            broken,
            "-print_final_stats=1".to_owned(),
        ])
        .args([&found, kept]))?;
    if args.keep {
        run(command().arg("-merge=1").args([kept, &found]))?;
    }
    Ok(())
}
