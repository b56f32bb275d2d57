//! `cargo xtask dist`: the binary to install, without debug information, and that in a file of its own.

use std::{env, path::PathBuf, process::Command};

use anyhow::Result;

use crate::{
    host::{Tool, require_tools},
    process::{cargo, run},
};

const OBJCOPY: Tool =
    Tool { command: "objcopy", package: "binutils", reason: "takes debug information apart", demo: false };

pub(crate) fn main() -> Result<()> {
    require_tools([&OBJCOPY])?;
    run(cargo().args(["build", "--profile=dist", "--locked", "--bin=tproxy"]))?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let directory = target.join("dist");
    let objcopy = |args: &[&str]| {
        // The debugger looks for the name that is noted, next to the binary.
        run(Command::new("objcopy").current_dir(&directory).args(args))
    };
    objcopy(&["--only-keep-debug", "--compress-debug-sections", "tproxy", "tproxy.debug"])?;
    objcopy(&["--strip-all", "--add-gnu-debuglink=tproxy.debug", "tproxy", "tproxy.stripped"])?;
    std::fs::rename(directory.join("tproxy.stripped"), directory.join("tproxy"))?;
    println!("{0}/tproxy, {0}/tproxy.debug", directory.display());
    Ok(())
}
