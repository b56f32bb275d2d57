//! `cargo xtask interface`: what programs can use of the library, compared with what is on record.

use std::{env, fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use public_api::PublicApi;

use crate::{
    process::{cargo, output, run},
    workspace,
};

/// The library's public items, a line for each.
const RECORD: &str = "tproxy-user/engine/interface.txt";

/// The documentation of all packages: with those features of the dependencies that the tests have, which are compiled once.
pub(crate) const DOCUMENTATION: &[&str] =
    &["doc", "--locked", "--workspace", "--exclude=tproxy-ebpf", "--no-deps"];

/// What only the command line and its tests are to need.
const NOT_OF_THE_LIBRARY: &[&str] = &[
    "anyhow",
    "clap",
    "clap_complete",
    "clap_mangen",
    "comfy-table",
    "crossterm",
    "hyper",
    "indicatif",
    "prometheus-client",
    "ratatui",
    "tracing-subscriber",
];

/// Compares the library's public items with `tproxy-user/engine/interface.txt`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Put those on record that there are
    #[arg(long)]
    pub(crate) write: bool,
}

/// Compiles the library by itself, as for a program that uses it, and fails when it brings along what it is not to.
pub(crate) fn alone() -> Result<()> {
    run(cargo().args(["clippy", "--locked", "--package=tproxy", "--", "-Dwarnings"]))?;
    let tree = ["tree", "--locked", "--package=tproxy", "--edges=normal", "--prefix=none", "--format={p}"];
    let tree = output(cargo().args(tree))?;
    let names = tree.lines().filter_map(|line| line.split(' ').next());
    let brought: Vec<_> = names.filter(|name| NOT_OF_THE_LIBRARY.contains(name)).collect();
    if !brought.is_empty() {
        bail!("the library depends on {}, which only the command line is to need", brought.join(", "));
    }
    Ok(())
}

pub(crate) fn main(args: &Args) -> Result<()> {
    let found = found()?;
    if args.write {
        return fs::write(RECORD, found).context(RECORD);
    }
    let recorded = fs::read_to_string(RECORD).context(RECORD)?;
    let differences = differences(&recorded, &found);
    if differences.is_empty() {
        println!("{RECORD} is what the library has");
        return Ok(());
    }
    println!("{}", differences.join("\n"));
    bail!("the library's interface has changed: if it is to, run `cargo xtask interface --write`")
}

/// The public items as they are now. rustdoc lists them for machines too, on request only, since the form of the list
/// changes from release to release.
fn found() -> Result<String> {
    let mut doc = cargo();
    doc.args(DOCUMENTATION)
        .env("RUSTDOC", workspace().canonicalize()?.join("xtask/src/interface/rustdoc.sh"));
    run(doc.env("RUSTDOCFLAGS", "-Zunstable-options --output-format=json --cap-lints=allow"))?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let items = public_api::Builder::from_rustdoc_json(target.join("doc/tproxy.json"))
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build();
    let items: PublicApi = items
        .context("rustdoc's list is of a form that this version of the crate public-api does not read")?;
    Ok(items.items().map(|item| format!("{item}\n")).collect())
}

/// Lines that only one of both has, as diff(1) marks them.
fn differences(recorded: &str, found: &str) -> Vec<String> {
    let only = |these: &str, those: &str, mark: char| {
        let missing = these.lines().filter(|line| !those.lines().any(|other| other == *line));
        missing.map(|line| format!("{mark} {line}")).collect::<Vec<_>>()
    };
    [only(recorded, found, '-'), only(found, recorded, '+')].concat()
}

#[cfg(test)]
mod tests {
    use super::differences;

    #[test]
    fn what_is_gone_and_what_is_new_is_told_by_line() {
        assert!(differences("a\nb\n", "a\nb\n").is_empty());
        assert_eq!(differences("a\nb\n", "a\nbc\n"), ["- b", "+ bc"]);
        assert_eq!(differences("", "a\n"), ["+ a"]);
    }
}
