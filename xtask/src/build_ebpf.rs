//! `cargo xtask build-ebpf`: the committed eBPF object, made anew or checked.

mod compare;
#[path = "../../tproxy-user/engine/build/digest.rs"]
mod digest;
mod strip;
mod toolchain;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use toolchain::Toolchain;

use crate::process::run;

/// What the library embeds.
const OBJECT: &str = "tproxy-user/engine/ebpf/tproxy.o";
/// What the library's build script compares with the sources.
const RECORD: &str = "tproxy-user/engine/ebpf/tproxy.o.digest";

/// Builds the eBPF object that is committed with its sources' digest
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Install what is missing of the toolchain (Debian, as root)
    #[arg(long)]
    pub(crate) install: bool,
    /// Write nothing; fail when the committed object differs in what the kernel is given
    #[arg(long)]
    pub(crate) check: bool,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    let sources = digest::of_sources(Path::new("."))?;
    if args.check {
        let record = fs::read_to_string(RECORD).context(RECORD)?;
        if digest::recorded(&record) != Some(&sources) {
            bail!("the eBPF object is older than its sources: run `cargo xtask build-ebpf`");
        }
    }
    let toolchain = if args.install { Toolchain::find_or_install()? } else { Toolchain::find()? };
    println!("compiler: {}", toolchain.describe());
    let object = build(&toolchain)?;
    if args.check { check(&toolchain, &object) } else { write(&toolchain, &object, &sources) }
}

/// Lints and documents the programs for the target that they are built for; for the host they are empty.
pub(crate) fn lint() -> Result<()> {
    let toolchain = Toolchain::find()?;
    // All that `cargo clippy` does beyond `cargo check`, but never with another toolchain's driver.
    run(cargo(&toolchain, "check", &["-Dwarnings"])?.env("RUSTC_WORKSPACE_WRAPPER", toolchain.clippy()?))?;
    let mut doc = cargo(&toolchain, "doc", &[])?;
    doc.args(["--no-deps", "--document-private-items"]);
    run(doc.env("RUSTDOCFLAGS", "-Dwarnings").env("RUSTDOC", toolchain.sysroot().join("bin/rustdoc")))
}

/// The object, without debug sections: they are not loaded, and name directories of this machine.
fn build(toolchain: &Toolchain) -> Result<Vec<u8>> {
    run(&mut cargo(toolchain, "build", &[])?)?;
    let built = target_directory()?.join("bpfel-unknown-none/bpf/tproxy");
    strip::debug_sections(&fs::read(&built).with_context(|| built.display().to_string())?)
}

fn write(toolchain: &Toolchain, object: &[u8], sources: &str) -> Result<()> {
    fs::create_dir_all("tproxy-user/engine/ebpf")?;
    fs::write(OBJECT, object).context(OBJECT)?;
    fs::write(RECORD, format!("sources = {sources}\ncompiler = {}\n", toolchain.describe()))
        .context(RECORD)?;
    println!("{OBJECT}: {} bytes, digest of its sources {}…", object.len(), &sources[..16]);
    Ok(())
}

fn check(toolchain: &Toolchain, built: &[u8]) -> Result<()> {
    let committed = fs::read(OBJECT).context(OBJECT)?;
    let differences = compare::differences(&committed, built)?;
    if differences.is_empty() {
        println!("{OBJECT} is what its sources make");
        return Ok(());
    }
    for difference in &differences {
        println!("  {difference}");
    }
    let record = fs::read_to_string(RECORD).context(RECORD)?;
    let maker = record.lines().find_map(|line| line.strip_prefix("compiler = ")).unwrap_or("unknown");
    bail!("{OBJECT} is not what its sources make with {}; its compiler was {maker}", toolchain.describe())
}

/// A cargo command on the programs, for the bpf target.
fn cargo(toolchain: &Toolchain, subcommand: &str, lints: &[&str]) -> Result<Command> {
    let mut flags = vec![
        // Types of registers in programs that probe the kernel, of which there are none here: the object
        // is the same for all machines, but the crates want to hear a name.
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        format!("-Clinker={}", toolchain.linker()),
        "-Clink-arg=--btf".to_owned(),
    ];
    flags.extend(remap(toolchain)?);
    flags.extend(lints.iter().map(ToString::to_string));
    let mut cargo = toolchain.cargo();
    cargo
        .args([subcommand, "--locked", "--package=tproxy-ebpf", "--bin=tproxy"])
        .args(["--profile=bpf", "--target=bpfel-unknown-none", "-Zbuild-std=core"])
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_TARGET_DIR", target_directory()?);
    Ok(cargo)
}

/// Line information names source files: no directory of this machine may stand in it.
fn remap(toolchain: &Toolchain) -> Result<Vec<String>> {
    let flag = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let mut flags = vec![
        flag(&fs::canonicalize(".")?, "."),
        flag(&toolchain.sysroot().join("lib/rustlib/src/rust"), "/rust"),
    ];
    let registry = cargo_home()?.join("registry/src");
    // Before the first build nothing is there; the names of its directories differ between registries.
    run(toolchain.cargo().args(["fetch", "--locked", "--quiet"]))?;
    for index in fs::read_dir(&registry).with_context(|| registry.display().to_string())? {
        flags.push(flag(&index?.path(), "/crates"));
    }
    Ok(flags)
}

fn cargo_home() -> Result<PathBuf> {
    match std::env::var_os("CARGO_HOME") {
        Some(directory) => Ok(directory.into()),
        None => Ok(std::env::home_dir().context("no home directory")?.join(".cargo")),
    }
}

/// A directory of its own: another compiler's artefacts are of no use here.
fn target_directory() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.ancestors().nth(2).context("no target directory above this program")?.join("bpf"))
}
