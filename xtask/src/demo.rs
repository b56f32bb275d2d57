//! `cargo xtask demo`: tproxy between a client and a server, in three network namespaces.

use anyhow::Result;

use crate::{
    host::{self, TOOLS},
    process::{cargo, run},
};

pub(crate) fn main() -> Result<()> {
    host::require_root("demo")?;
    host::require_tools(TOOLS.iter().filter(|tool| tool.demo))?;
    // The example runs the binary that is next to it.
    run(cargo().args(["build", "--locked", "--bin=tproxy", "--example=demo"]))?;
    run(cargo().args(["run", "--locked", "--quiet", "--example=demo"]))
}
