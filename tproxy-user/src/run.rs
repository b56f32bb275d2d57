//! `tproxy run` and `tproxy cleanup`, from start to end.

use std::io;

use anyhow::anyhow;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    config::{Config, OnExit},
    host::{self, Report, links::Monitor, preflight},
    instance::Instance,
};

/// Runs an instance until SIGINT or SIGTERM, and stops it in order; a second signal stops it now.
///
/// # Errors
/// What kept it from starting, or from leaving the host as it was.
pub async fn run(config: Config, verbose: bool) -> anyhow::Result<()> {
    let mut signals = Signals::new().map_err(|error| anyhow!("cannot listen for signals: {error}"))?;
    preflight::check()?;
    raise_descriptor_limit();
    let cannot_watch = |error: io::Error| anyhow!("cannot watch the interfaces (netlink): {error}");
    let mut monitor = Monitor::new().map_err(cannot_watch)?;
    let left = match config.on_exit {
        OnExit::Pass => "the host is as it was",
        OnExit::Reject => "flows that a rule selects are rejected until the next start, or `tproxy cleanup`",
    };
    let mut instance = Instance::start(config, verbose)?;
    tracing::info!("ready: steering is in place");
    loop {
        tokio::select! {
            () = signals.next() => break,
            () = instance.worker_ended() => {
                instance.stop()?;
                anyhow::bail!("a worker ended by itself, which is a bug; {left}");
            }
            changed = monitor.next() => {
                let changed = changed.map_err(cannot_watch)?;
                if let Err(error) = instance.follow(changed) {
                    tracing::error!("cannot follow a change of the host: {error}");
                }
            }
        }
    }
    tokio::select! {
        drained = instance.drain() => drained?,
        () = signals.next() => tracing::info!("second signal: stopping now"),
    }
    instance.stop()?;
    tracing::info!("stopped: {left}");
    Ok(())
}

/// Undoes what dead instances left in this network namespace, and says what that was.
///
/// # Errors
/// What could not be undone.
pub fn cleanup() -> anyhow::Result<Vec<Report>> {
    preflight::check()?;
    Ok(host::cleanup()?)
}

/// A connection takes two descriptors, and the usual soft limit is 1,024: enough for programs that use `select`, which
/// nothing here does.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}

/// SIGINT, SIGTERM and SIGHUP (the terminal is gone), which mean the same.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
