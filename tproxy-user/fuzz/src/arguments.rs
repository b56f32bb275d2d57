//! The words of a command line, each in a line: a command, or an error that says what is meant.

use clap::Parser as _;
use tproxy_cli::cli::Cli;

pub(crate) fn read(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Err(error) = Cli::try_parse_from(["tproxy"].into_iter().chain(text.split('\n'))) {
        assert!(!error.to_string().is_empty());
    }
}
