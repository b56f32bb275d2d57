//! Log lines on stderr.

mod limit;

use std::{
    io::{self, IsTerminal as _},
    sync::OnceLock,
    time::Duration,
};

use limit::FloodLimit;
use tokio::time::{MissedTickBehavior, interval};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Lines that may wait for whoever reads stderr. What a line takes of memory is its own length.
const QUEUE: usize = 8192;

/// Logging is the process's, as stderr is.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Lines that were dropped since the start, because nobody read those before them.
#[must_use]
pub fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// Says when lines were dropped, for as long as it is polled. Also that is a line that waits for a reader.
pub(crate) async fn say_dropped() {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = 0;
    loop {
        ticks.tick().await;
        let dropped = dropped_lines();
        // This line may be dropped as well, and is then counted with the others.
        if dropped > said {
            tracing::warn!(lines = dropped - said, "log lines were dropped: nobody reads stderr fast enough");
            said = dropped;
        }
    }
}

/// Has the lines that wait written when it is dropped, unless nobody reads them, which is not waited for for long.
#[must_use]
#[derive(Debug)]
pub struct Logging {
    _writer: WorkerGuard,
}

/// Starts logging, once a process. `RUST_LOG` overrides `verbose`. Warnings and errors are limited by their reason.
///
/// A thread of its own writes: a reader of stderr that stops (a terminal with Ctrl-S, a stuck collector of logs) stops
/// nothing else.
pub fn init(format: Format, verbose: u8) -> Logging {
    let default = match verbose {
        0 => "info",
        1 => "debug,aya=info,aya_obj=info",
        _ => "trace,aya=info,aya_obj=info,mio=info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUE)
        .lossy(true)
        .thread_name("tproxy-log")
        .finish(io::stderr());
    let _ = DROPPED.set(writer.error_counter());
    // Whoever read our stderr may go away; that must not end us.
    let lines = tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(writer)
        .with_target(false);
    match format {
        Format::Text => {
            lines.with_ansi(io::stderr().is_terminal()).finish().with(FloodLimit::default()).init()
        }
        Format::Json => lines.json().flatten_event(true).finish().with(FloodLimit::default()).init(),
    }
    Logging { _writer: guard }
}
