//! What is generated from the command line: completions and manual pages.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Cli;

/// Writes the completions for `shell`.
///
/// # Errors
/// Those of `to`.
pub fn completions(shell: Shell, to: &mut impl Write) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tproxy", &mut script);
    to.write_all(&script)
}

/// Writes a manual page for each command into `directory`, which has to exist.
///
/// # Errors
/// One line that names the directory.
pub fn man(directory: &Path) -> io::Result<()> {
    let named = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("{}: {error}; name a directory to write to", directory.display()),
        )
    };
    fs::metadata(directory).and_then(|_| clap_mangen::generate_to(Cli::command(), directory)).map_err(named)
}
