//! `cargo xtask verify`: what the running kernel's verifier makes of the committed object.

use anyhow::Result;

use crate::{
    host,
    process::{cargo, run},
};

pub(crate) fn main() -> Result<()> {
    host::require_root("verify")?;
    run(cargo().args(["run", "--locked", "--quiet", "--example=verify"]))
}
