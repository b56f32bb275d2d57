//! Log lines on stderr.

mod limit;

use std::io::{self, IsTerminal as _};

use limit::Limit;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging, once a process. `RUST_LOG` overrides `verbose`. Warnings and errors are limited by their reason.
pub fn init(format: Format, verbose: u8) {
    let default = match verbose {
        0 => "info",
        1 => "debug,aya=info,aya_obj=info",
        _ => "trace,aya=info,aya_obj=info,mio=info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    // Whoever read our stderr may go away; that must not end us.
    let lines = tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false);
    match format {
        Format::Text => lines.with_ansi(io::stderr().is_terminal()).finish().with(Limit::default()).init(),
        Format::Json => lines.json().flatten_event(true).finish().with(Limit::default()).init(),
    }
}
