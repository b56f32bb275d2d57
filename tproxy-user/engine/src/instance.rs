//! One running instance in one network namespace: what it is made of, how it starts, follows the host, and stops.

mod changes;
mod follow;
mod look;
mod reload;
#[cfg(test)]
mod tests;
mod workers;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

pub use changes::Changes;
use follow::look_around;
use futures_util::future::join_all;
#[doc(hidden)]
pub use look::Look;
use reload::Superseded;
use socket2::Socket;
use tokio::sync::Notify;
use workers::{Counters, start_workers};

use crate::{
    config::{Config, OnExit, Rule},
    counts::counts,
    datapath::{Attachment, Datapath, DatapathError, Settings, Sizes},
    family::Family,
    flows::Flows,
    generation::{Generation, Generations},
    host::{Change, HostError, Identity, Journal, lingering, local_table::LocalTable, pins, preflight},
    plan::{Plan, Surroundings},
    policy::{Cgroup, CgroupError, Compiled},
    socket::SocketError,
    worker::{Pulse, Worker},
};

/// Why an instance could not start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// A rule names an interface that does not exist.
    #[error("interface '{0}' does not exist; `ip link` shows those that do")]
    NoSuchInterface(String),
    /// A reload asks for what is made at the start.
    #[error("{} cannot change while tproxy runs: restart it, or leave that as it is", .0.join(", "))]
    Fixed(Vec<&'static str>),
    /// A rule names something that is no cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The host refused a change or an answer.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The eBPF side failed.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// A listener could not be made.
    #[error("{0}")]
    Socket(#[from] SocketError),
    /// The system refused what a worker needs.
    #[error("cannot start a worker: {0}; try fewer workers or a higher limit of processes")]
    Worker(#[source] io::Error),
}

/// A running instance. Dropping it, also while a panic unwinds, detaches, resets connections, and leaves the host as
/// it was: the fields are dropped in that order.
pub struct Instance {
    datapath: Datapath,
    workers: Vec<Worker>,
    counters: Vec<Counters>,
    flows: Flows,
    draining: bool,
    black_holes: Vec<Socket>,
    _sockets: LingeringSockets,
    journal: Journal,
    config: Config,
    cgroups: Vec<Vec<Cgroup>>,
    generations: Generations,
    superseded: Vec<Superseded>,
    ended: Arc<Notify>,
    surroundings: Surroundings,
    plan: Plan,
}

impl Instance {
    /// Starts all that is needed and takes flows from the moment it returns.
    ///
    /// # Errors
    /// [`InstanceError`]; the host is then as it was.
    pub fn start(config: Config, verbose: bool) -> Result<Self, InstanceError> {
        Self::start_with(Attachment::of_this_kernel(), config, verbose)
    }

    fn start_with(attachment: Attachment, config: Config, verbose: bool) -> Result<Self, InstanceError> {
        if config.on_exit == OnExit::Reject && attachment == Attachment::Clsact {
            return Err(preflight::too_old(
                "on_exit = \"reject\" (links of tc programs that can be pinned)",
                "6.6",
            )
            .into());
        }
        let surroundings = look_around()?;
        require_interfaces(&config.rules, &surroundings, |_| false)?;
        let cgroups = resolve_cgroups(&config.rules)?;
        let Config { mark, table, priority, steer, .. } = config;
        let journal = Journal::begin(Identity { mark, table, priority })?;
        let sockets = LingeringSockets { config: config.clone() };
        let workers = config.workers as u32;
        let memory = config.timeouts.udp_stream;
        let sets = Compiled::new(&config.rules, |rule| surroundings.limit(rule), &cgroups).sets.len();
        let sizes = Sizes::of(&config, sets);
        let settings = Settings { mark, steer, attachment, workers, memory, sizes, verbose };
        let mut datapath = Datapath::load(settings)?;
        if verbose {
            datapath.forward_logs()?;
        }
        let flows = Flows::of_workers(config.workers);
        let ended = Arc::new(Notify::new());
        let generations = Generations::of(Generation::first(&config, Arc::clone(&ended)));
        let (workers, counters) = start_workers(&config, &generations, &flows, &mut datapath)?;
        let mut instance = Self {
            datapath,
            workers,
            counters,
            flows,
            draining: false,
            black_holes: Vec::new(),
            _sockets: sockets,
            journal,
            config,
            cgroups,
            generations,
            superseded: Vec::new(),
            ended,
            surroundings,
            plan: Plan::default(),
        };
        instance.set_host_addresses()?;
        for family in Family::available() {
            instance.journal.apply(Change::LocalRoute { family })?;
        }
        instance.carry_out()?;
        instance.datapath.attach_lookup()?;
        instance.datapath.start_deciding()?;
        instance.provide_for_exit()?;
        Ok(instance)
    }

    /// The live flows.
    #[doc(hidden)]
    #[must_use]
    pub const fn flows(&self) -> &Flows {
        &self.flows
    }

    /// Has done by the kernel what `on_exit` asks for, whatever ends this process; and ends what an earlier one left to
    /// be done. Steering is in place by now, so flows meet the one or the other.
    fn provide_for_exit(&mut self) -> Result<(), InstanceError> {
        let directory = pins::directory(self.config.mark)?;
        let change = Change::Pins { directory: directory.clone() };
        match self.config.on_exit {
            OnExit::Reject => {
                self.journal.apply(change)?;
                self.datapath.outlive(&directory)?;
                self.journal.hold(true)?;
            }
            OnExit::Pass => {
                self.journal.revert(&change)?;
                self.journal.hold(false)?;
            }
        }
        Ok(())
    }

    /// Worker threads end only when they are told to, or panic; completes when one has.
    pub async fn worker_ended(&self) {
        let ended: Vec<_> = self.workers.iter().map(|worker| Box::pin(worker.ended())).collect();
        futures_util::future::select_all(ended).await;
    }

    /// Those of its workers.
    #[doc(hidden)]
    #[must_use]
    pub fn pulses(&self) -> Vec<Pulse> {
        self.workers.iter().map(Worker::pulse).collect()
    }

    /// Connections and sessions at the moment.
    #[must_use]
    pub fn live(&self) -> usize {
        self.workers.iter().map(Worker::live).sum()
    }

    /// How long live flows may go on once no new one is taken.
    #[must_use]
    pub const fn drain_limit(&self) -> Duration {
        self.config.timeouts.drain
    }

    /// Takes no new flow from now on.
    ///
    /// # Errors
    /// When the datapath cannot be told.
    pub fn drain(&mut self) -> Result<(), InstanceError> {
        self.datapath.stop_deciding()?;
        self.draining = true;
        self.workers.iter().for_each(Worker::drain);
        tracing::info!(live = self.live(), limit = ?self.drain_limit(), "draining: no new flow is taken");
        Ok(())
    }

    /// Waits until the live flows have ended, at most [`Self::drain_limit`].
    ///
    /// # Errors
    /// When the host cannot be asked.
    pub async fn drained(&self) -> Result<(), InstanceError> {
        let deadline = Instant::now() + self.drain_limit();
        match tokio::time::timeout_at(deadline.into(), self.finished()).await {
            Ok(finished) => finished,
            Err(_elapsed) => Ok(()),
        }
    }

    /// Waits until no connection or session is live or about to be, and what closed ones still had to send is acknowledged. Of the
    /// latter two the kernel gives no word, so it is asked.
    async fn finished(&self) -> Result<(), InstanceError> {
        const BETWEEN_LOOKS: Duration = Duration::from_millis(20);
        let local = LocalTable::load(self.config.table)?;
        loop {
            join_all(self.workers.iter().map(Worker::drained)).await;
            match lingering::unfinished(self.config.mark, &local) {
                // Where the kernel does not tell, connections have ended all the same.
                Ok(0) | Err(HostError::NoSockDiag) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    /// Detaches, ends what is live, and leaves the host as it was; or, where `on_exit` says so, rejecting what rules select.
    ///
    /// # Errors
    /// The first thing that could not be undone; the rest is all the same.
    pub fn stop(mut self) -> Result<(), InstanceError> {
        self.datapath.stop_deciding()?;
        self.datapath.detach();
        for worker in &self.workers {
            worker.stop_now();
        }
        let panics = self.workers.drain(..).filter_map(|worker| worker.join().err()).count();
        if panics > 0 {
            tracing::error!(panics, "workers had panicked");
        }
        self.log_counters();
        let Self { _sockets: sockets, journal, .. } = self;
        drop(sockets);
        Ok(journal.undo()?)
    }

    fn log_counters(&self) {
        tracing::info!("connections: {}", self.tcp());
        tracing::info!("datagrams: {}", self.udp());
        match self.datapath.counters() {
            Ok(counters) => {
                let named = counters.iter().map(|(reason, count)| (reason.name(), *count));
                tracing::info!("packets: {}", counts(named));
            }
            Err(error) => tracing::warn!("packets: {error}"),
        }
    }
}

/// Sockets of ours that are left when an instance ends would swallow packets that are to pass: those in TIME_WAIT and
/// FIN_WAIT still own their foreign addresses, and `ip_forward()` drops a packet that early demux gave a socket.
struct LingeringSockets {
    config: Config,
}

impl Drop for LingeringSockets {
    fn drop(&mut self) {
        let destroyed = LocalTable::load(self.config.table)
            .and_then(|local| lingering::destroy(self.config.mark, &local));
        match destroyed {
            Ok(0) => {}
            Ok(sockets) => tracing::debug!(sockets, "destroyed what lingered with foreign addresses"),
            Err(error @ HostError::NoSockDiag) => tracing::warn!("{error}"),
            Err(error) => tracing::error!("{error}"),
        }
    }
}

fn require_interfaces(
    rules: &[Rule],
    surroundings: &Surroundings,
    may_be_gone: impl Fn(&String) -> bool,
) -> Result<(), InstanceError> {
    let missing = rules
        .iter()
        .flat_map(|rule| &rule.interfaces)
        .find(|name| !may_be_gone(name) && !surroundings.links.iter().any(|link| link.name == **name));
    missing.map_or(Ok(()), |name| Err(InstanceError::NoSuchInterface(name.clone())))
}

fn resolve_cgroups(rules: &[Rule]) -> Result<Vec<Vec<Cgroup>>, CgroupError> {
    rules.iter().map(|rule| rule.cgroups.iter().map(|path| Cgroup::resolve(path)).collect()).collect()
}
