//! `tproxy run` and `tproxy cleanup`, from start to end.

use std::{io, pin::pin};

use anyhow::anyhow;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    config::Config,
    control::{self, Command, Draining, Seat},
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
    let seat = Seat::take(&config)?;
    let mut instance = Instance::start(config, verbose)?;
    let (commands, mut asked) = control::asked();
    let served =
        seat.serve(commands, instance.flows().clone()).map_err(|error| anyhow!("control socket: {error}"))?;
    tracing::info!("ready: steering is in place");
    loop {
        tokio::select! {
            () = signals.next() => break,
            Some(command) = asked.recv() => if carry_out(command, &instance) == Next::Drain { break },
            () = instance.worker_ended() => {
                instance.stop()?;
                anyhow::bail!("a worker ended by itself, which is a bug; the host is as it was");
            }
            changed = monitor.next() => {
                let changed = changed.map_err(cannot_watch)?;
                if let Err(error) = instance.follow(changed) {
                    tracing::error!("cannot follow a change of the host: {error}");
                }
            }
        }
    }
    instance.drain()?;
    {
        let mut drained = pin!(instance.drained());
        loop {
            tokio::select! {
                drained = &mut drained => break drained?,
                () = signals.next() => break tracing::info!("second signal: stopping now"),
                Some(command) = asked.recv() => drop(carry_out(command, &instance)),
            }
        }
    }
    served.finish().await;
    instance.stop()?;
    tracing::info!("stopped: the host is as it was");
    Ok(())
}

/// What a run does after a command.
#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    Drain,
}

/// Does what was asked; whoever asked may be gone by now.
fn carry_out(command: Command, instance: &Instance) -> Next {
    match command {
        Command::Look(answer) => {
            let _ = answer.send(instance.look().map(Box::new).map_err(|error| error.to_string()));
        }
        Command::Maps(answer) => {
            let _ = answer.send(instance.maps().map_err(|error| error.to_string()));
        }
        Command::Drain(answer) => {
            let limit_seconds = instance.drain_limit().as_secs_f64();
            let _ = answer.send(Draining { live: instance.live(), limit_seconds });
            return Next::Drain;
        }
    }
    Next::GoOn
}

/// Undoes what dead instances left in this network namespace, and says what that was.
///
/// # Errors
/// What could not be undone.
pub fn cleanup() -> anyhow::Result<Vec<Report>> {
    preflight::check()?;
    let mut reports = host::cleanup()?;
    let sockets = host::control_socket::remove_dead()?;
    reports.extend(sockets.into_iter().map(|path| Report::Socket { path }));
    Ok(reports)
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
