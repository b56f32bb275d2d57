//! `cargo xtask docs`: what the documentation shows is what happens.
//!
//! Every page with commands is played on a client, a gateway and a server of its own, from its first block to its last,
//! and what it shows is compared with what comes; CONTRIBUTING.md says how blocks are written. That links lead somewhere
//! and that blocks are marked is checked by the tests here, without root.

mod blocks;
mod compare;
#[cfg(test)]
mod links;
mod page;
mod play;
mod session;

use std::{path::PathBuf, thread, time::Instant};

use anyhow::{Context, Result, bail};

use crate::{
    host::{self, TOOLS},
    process::{cargo, run},
    test, workspace,
};
use blocks::Step;
use page::Page;

/// Plays the commands of README.md and docs, and compares what they show (root)
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Pages, by a part of their path (default: all that have commands)
    pages: Vec<String>,
    /// A binary with its examples next to it, instead of building them
    #[arg(long, value_name = "FILE")]
    tproxy: Option<PathBuf>,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    host::require_root("docs")?;
    host::require_tools(TOOLS)?;
    let tproxy = match &args.tproxy {
        Some(file) => file.clone(),
        None => built()?,
    };
    play(&args.pages, &tproxy.canonicalize().with_context(|| format!("{}", tproxy.display()))?)
}

/// The binary that cargo made, with the examples next to it.
fn built() -> Result<PathBuf> {
    run(cargo().args(test::BUILD))?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    Ok(target.join("debug/tproxy"))
}

/// Plays all pages at the same time, and says what was wrong with each.
fn play(wanted: &[String], tproxy: &std::path::Path) -> Result<()> {
    let mut pages = Vec::new();
    for page in Page::all()? {
        let steps = blocks::steps(&page)?;
        let named = wanted.is_empty() || wanted.iter().any(|part| page.path.to_string_lossy().contains(part));
        if named && steps.iter().any(|step| matches!(step.what, blocks::What::Command { .. })) {
            pages.push((page, steps));
        }
    }
    if pages.is_empty() {
        bail!("no page of that name has commands");
    }
    let network = network()?;
    let play = |page: &Page, steps: &[Step]| -> Result<()> {
        let start = Instant::now();
        // The tour shows how the network is made; everybody else finds it made.
        let before = if page.path == network.0 { &[][..] } else { &network.1 };
        play::page(page, before, steps, tproxy)?;
        println!("{}: {} steps in {:.1?}", page.path.display(), steps.len(), start.elapsed());
        Ok(())
    };
    let failures: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = pages.iter().map(|(page, steps)| scope.spawn(|| play(page, steps))).collect();
        threads.into_iter().filter_map(|thread| thread.join().expect("no panic").err()).collect()
    });
    if failures.is_empty() {
        return Ok(());
    }
    let shown: Vec<_> = failures.iter().map(|failure| format!("{failure:#}")).collect();
    bail!("{} of {} pages are not true:\n\n{}", failures.len(), pages.len(), shown.join("\n\n"))
}

/// The page that makes the network, and how: the first script that is run, and what follows up to the next heading.
fn network() -> Result<(PathBuf, Vec<Step>)> {
    let page = Page::read("docs/tour.md")?;
    let end = page.text.find("\n## ").context("docs/tour.md has headings")?;
    let head = Page { path: page.path.clone(), text: page.text[..end].to_owned() };
    Ok((page.path, blocks::steps(&head)?))
}
