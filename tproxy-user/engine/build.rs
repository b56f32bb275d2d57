//! Refuses to embed an eBPF object that is older than its sources.

#[path = "build/digest.rs"]
mod digest;

use std::{fs, io, path::Path};

/// Written next to the object by `cargo xtask build-ebpf`.
const RECORD: &str = "ebpf/tproxy.o.digest";

fn main() -> io::Result<()> {
    for own in ["build.rs", "build", "ebpf"] {
        println!("cargo::rerun-if-changed={own}");
    }
    let workspace = Path::new("../..");
    // A crate from a registry brings the object without its sources.
    if !workspace.join("tproxy-ebpf").exists() {
        return Ok(());
    }
    for source in digest::SOURCES.into_iter().chain([digest::LOCK]) {
        println!("cargo::rerun-if-changed=../../{source}");
    }
    let record = fs::read_to_string(RECORD).unwrap_or_default();
    if digest::recorded(&record) != Some(&digest::of_sources(workspace)?) {
        println!("cargo::error=the eBPF object is older than its sources: run `cargo xtask build-ebpf`");
    }
    Ok(())
}
