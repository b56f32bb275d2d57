//! `tproxy run` and `tproxy cleanup`, from start to end.

mod admission;
mod cgroups;
mod commands;
mod descriptors;
mod last_resort;
mod loading;
mod losses;
mod manager;
mod watch;

use std::{
    io, iter,
    path::PathBuf,
    pin::pin,
    sync::{Arc, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

use anyhow::anyhow;
pub use commands::{Command, Commands, Draining, Refused, Reloads, Reply};
pub(crate) use descriptors::with_reserve;
use tokio::{
    runtime::Builder,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
};
use tproxy::{
    config::{Config, Firewall, OnExit},
    datapath::DatapathError,
    host::{
        self, Identity, Reclaimed,
        links::{Changed, Monitor},
        preflight,
    },
    instance::{Instance, InstanceError},
    worker::Pulse,
};

use crate::{control::Seat, doctor::firewall, logging};
use admission::Admitting;
use cgroups::CgroupWatch;
use commands::{Executor, Further, Underway};
use descriptors::with_some;
use last_resort::LastResort;
use losses::Explainer;
use watch::FileWatch;

/// What `tproxy run` is to do.
#[derive(Debug)]
pub struct Start {
    /// By what it begins.
    pub config: Config,
    /// Where that came from, to be read again; none if from flags.
    pub file: Option<PathBuf>,
    /// Whether to read it again by itself when it changes.
    pub watch: bool,
    /// Whether the eBPF programs log.
    pub verbose: bool,
    /// Called when steering is in place: what starting took is not needed any more.
    pub settled: fn(),
}

/// Runs an instance until a signal or `tproxy drain` says to stop, and stops it in order; another signal stops it now.
///
/// # Errors
/// What kept it from starting, or from leaving the host as it was.
pub async fn run(start: Start) -> anyhow::Result<()> {
    let Start { config, file, watch, verbose, settled } = start;
    let no_signals = |error: io::Error| anyhow!("cannot listen for signals: {error}");
    let last_resort = LastResort::arm(file.is_some()).map_err(no_signals)?;
    let mut signals = Signals::new(file.is_some()).map_err(no_signals)?;
    preflight::check()?;
    remark(&config);
    let mut admitting = Admitting::new();
    if config.firewall == Firewall::LeftAlone {
        look_at_the_firewall(config.clone());
    }
    descriptors::raise_limit();
    let cannot_watch = |error: io::Error| anyhow!("cannot watch the interfaces (netlink): {error}");
    let mut monitor = Monitor::new().map_err(cannot_watch)?;
    let seat = Seat::take(&config)?;
    let (commands, mut sent) = mpsc::channel(commands::QUEUE);
    if let Some(file) = file.clone().filter(|_| watch) {
        watch_in_a_thread(file, commands.clone())
            .map_err(|error| anyhow!("cannot watch the file (inotify): {error}"))?;
    }
    let mut executor = Executor::new(file);
    let mut explainer =
        Explainer::new(Identity { mark: config.mark, table: config.table, priority: config.priority });
    let left = match config.on_exit {
        OnExit::Pass => "the host is as it was",
        OnExit::Reject => "flows that a rule selects are rejected until the next start, or `tproxy cleanup`",
    };
    let cannot_watch_cgroups = |error: io::Error| anyhow!("cannot watch cgroups (inotify): {error}");
    let mut cgroups = CgroupWatch::new().map_err(cannot_watch_cgroups)?;
    let mut instance = match Instance::start_unless(signals.stopped(), config, verbose) {
        Err(InstanceError::Datapath(DatapathError::GivenUp)) => {
            tracing::info!("stopped before steering was in place: {left}");
            return Ok(());
        }
        started => started?,
    };
    if instance.config().firewall == Firewall::Opened {
        instance.admit(firewall::admissions(instance.config()));
        look_at_the_firewall(instance.config().clone());
    }
    let (pulse, mut asked) = Pulse::new();
    tokio::spawn(manager::say_alive(iter::once(pulse).chain(instance.pulses()).collect()));
    tokio::spawn(logging::say_dropped());
    let served =
        seat.serve(commands, instance.flows().clone()).map_err(|error| anyhow!("control socket: {error}"))?;
    settled();
    let ready = Instant::now();
    tracing::info!("ready: steering is in place");
    manager::ready("steering is in place");
    loop {
        let in_cgroups = Changed { cgroups: true, ..Changed::NOTHING };
        if cgroups.watch(instance.cgroup_directories()) {
            instance.follow(in_cgroups);
        }
        tokio::select! {
            signal = signals.next() => match signal {
                Signalled::Stop => break,
                Signalled::Reload => {
                    let (reply, _) = oneshot::channel();
                    executor.carry_out(Command::Reload { confirm: None, reply }, &mut instance);
                }
            },
            Some(command) = sent.recv() => {
                if with_some(|| executor.carry_out(command, &mut instance)) == Further::Stop {
                    break;
                }
            }
            Some(reply) = asked.recv() => drop(reply.send(())),
            prepared = executor.prepared() => match prepared {
                Underway::Read(read) => executor.go_on(*read, &mut instance),
                Underway::TooLate => executor.roll_back(&mut instance),
            },
            () = instance.outlived() => instance.retire(),
            () = instance.unsettled() => {
                with_some(|| instance.reconcile());
                explainer.begin(instance.look_for_losses());
                admitting.begin(instance.config());
            }
            places = admitting.found() => instance.admit(places),
            (entrance, reason) = explainer.explained() => instance.explain_loss(entrance, reason),
            changed = cgroups.changed() => {
                changed.map_err(cannot_watch_cgroups)?;
                instance.follow(in_cgroups);
            }
            () = instance.worker_ended() => {
                descriptors::release_reserve();
                instance.stop()?;
                anyhow::bail!("a worker ended by itself, which is a bug; {left}");
            }
            changed = monitor.next() => {
                let changed = changed.map_err(cannot_watch)?;
                with_some(|| instance.follow(changed));
            }
        }
    }
    descriptors::release_reserve();
    instance.drain()?;
    manager::stopping(instance.live(), instance.drain_limit());
    last_resort.stopping(instance.drain_limit());
    {
        let mut drained = pin!(instance.drained());
        loop {
            tokio::select! {
                drained = &mut drained => break drained?,
                () = signals.stop() => break tracing::info!("second signal: stopping now"),
                Some(command) = sent.recv() => executor.answer(command, &instance),
                () = instance.unsettled() => instance.reconcile(),
                changed = monitor.next() => instance.follow(changed.map_err(cannot_watch)?),
                Some(reply) = asked.recv() => drop(reply.send(())),
            }
        }
    }
    last_resort.stopping(Duration::ZERO);
    served.finish().await;
    instance.stop()?;
    tracing::info!(ready_for = ?ready.elapsed(), "stopped: {left}");
    Ok(())
}

/// Undoes what dead instances left in this network namespace, and says what that was.
///
/// # Errors
/// What could not be undone.
pub fn cleanup() -> anyhow::Result<Vec<Reclaimed>> {
    preflight::check()?;
    let mut reports = host::cleanup()?;
    let sockets = host::control_socket::remove_dead()?;
    reports.extend(sockets.into_iter().map(|path| Reclaimed::Socket { path }));
    Ok(reports)
}

/// Says what of a configuration has no effect.
fn remark(config: &Config) {
    for remark in config.remarks_on_this_host() {
        tracing::warn!("{remark}");
    }
}

/// Says what the firewall does to steered packets; it may take seconds to ask it, which nobody waits for.
fn look_at_the_firewall(config: Config) {
    let look = move || {
        for remark in firewall::remarks(&config) {
            tracing::warn!("{remark}");
        }
    };
    if let Err(error) = thread::Builder::new().name("tproxy-look".into()).spawn(look) {
        tracing::warn!("the firewall is not looked at: {error}");
    }
}

/// Looking at files may take long.
fn watch_in_a_thread(file: PathBuf, commands: Commands) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let watch = {
        let _inside = runtime.enter();
        FileWatch::new(file)?
    };
    let follow = move || runtime.block_on(reload_when_changed(watch, commands));
    thread::Builder::new().name("tproxy-watch".into()).spawn(follow).map(drop)
}

/// For as long as the instance runs.
async fn reload_when_changed(mut watch: FileWatch, commands: Commands) {
    loop {
        if let Err(error) = watch.changed().await {
            tracing::error!("cannot watch the file any more (inotify): {error}; SIGHUP has it read again");
            return;
        }
        let (reply, done) = oneshot::channel();
        // What it says is in the log. Without a receiver the instance stops.
        let _ = commands.send(Command::Reload { confirm: None, reply }).await;
        let _ = done.await;
    }
}

/// What a signal says.
enum Signalled {
    Stop,
    Reload,
}

/// SIGINT and SIGTERM stop. SIGHUP has the file read again; where there is none, it says that the terminal is gone.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    has_file: bool,
    stopped: Arc<AtomicBool>,
}

impl Signals {
    fn new(has_file: bool) -> io::Result<Self> {
        let stopped = Arc::default();
        let stopping = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        for kind in stopping.into_iter().take(if has_file { 2 } else { 3 }) {
            signal_hook::flag::register(kind.as_raw_value(), Arc::clone(&stopped))?;
        }
        Ok(Self {
            stopped,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            has_file,
        })
    }

    /// True once one says to stop, from that moment on, whether or not it was waited for.
    fn stopped(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stopped)
    }

    async fn next(&mut self) -> Signalled {
        tokio::select! {
            _ = self.interrupt.recv() => Signalled::Stop,
            _ = self.terminate.recv() => Signalled::Stop,
            _ = self.hangup.recv() => if self.has_file { Signalled::Reload } else { Signalled::Stop },
        }
    }

    /// Completes when one says to stop.
    async fn stop(&mut self) {
        while let Signalled::Reload = self.next().await {}
    }
}
