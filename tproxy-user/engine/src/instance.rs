//! One running instance in one network namespace: what it is made of, how it starts, follows the host, and stops.

mod addresses;
mod changes;
mod follow;
mod health;
mod look;
mod losses;
mod reload;
#[cfg(test)]
mod tests;
mod workers;

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use addresses::Addresses;
pub use changes::Changes;
use follow::look_around;
use futures_util::future::join_all;
#[doc(hidden)]
pub use health::Health;
use health::{Attempt, Convergence};
#[doc(hidden)]
pub use look::Look;
#[doc(hidden)]
pub use losses::Loss;
#[doc(hidden)]
pub use reload::Before;
use reload::Superseded;
use socket2::Socket;
use tokio::sync::Notify;
use tproxy_common::abi::MAX_OTHERS;
use workers::{Counters, start_workers};

use crate::{
    config::{Config, Firewall, OnExit, Rule},
    counts::counts,
    datapath::{Attachment, Datapath, DatapathError, Settings, Sizes},
    flows::Flows,
    generation::{Generation, Generations},
    host::{
        self, Change, HostError, Identity, Journal, Standing, lingering, links, local_table::LocalTable,
        nat::KnownNat, pins, policy::Discernment, preflight,
    },
    mark::Mark,
    plan::{LandingMark, Misnamed, Plan, Surroundings},
    policy::{Cgroup, CgroupError, Compiled},
    socket::SocketError,
    way::Routing,
    worker::{Liveness, Pulse, Worker},
};

/// Why an instance could not start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// A rule names an interface that packets are not routed from.
    #[error("rule '{rule}': {misnamed}")]
    Misnamed {
        /// The rule's name.
        rule: String,
        /// What it names.
        misnamed: Misnamed,
    },
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
    nat: KnownNat,
    _sockets: LingeringSockets,
    journal: Journal,
    config: Config,
    cgroups: Cgroups,
    /// The rules that the datapath decides by.
    compiled: Arc<Compiled>,
    generations: Generations,
    superseded: Vec<Superseded>,
    ended: Arc<Notify>,
    surroundings: Surroundings,
    routing: Routing,
    addresses: Addresses,
    /// What others' routing rules mean to what is relayed, by family.
    discerning: [Discernment; 2],
    /// In force since the plan was prepared last.
    landing: LandingMark,
    plan: Plan,
    convergence: Convergence,
    losses: losses::Losses,
    /// The listener lookup was attached, and has to stay so.
    is_steering: bool,
}

impl Instance {
    /// Starts all that is needed and takes flows from the moment it returns.
    ///
    /// # Errors
    /// [`InstanceError`]; the host is then as it was.
    pub fn start(config: Config, verbose: bool) -> Result<Self, InstanceError> {
        Self::start_unless(Arc::default(), config, verbose)
    }

    /// The same, which comes to its end soon once it is given up: to have programs verified takes long.
    ///
    /// # Errors
    /// As above, and [`DatapathError::GivenUp`].
    #[doc(hidden)]
    pub fn start_unless(
        given_up: Arc<AtomicBool>,
        config: Config,
        verbose: bool,
    ) -> Result<Self, InstanceError> {
        Self::start_with(Attachment::of_this_kernel(), given_up, config, verbose)
    }

    fn start_with(
        attachment: Attachment,
        given_up: Arc<AtomicBool>,
        config: Config,
        verbose: bool,
    ) -> Result<Self, InstanceError> {
        if config.on_exit == OnExit::Reject && attachment == Attachment::Clsact {
            return Err(preflight::too_old(
                "on_exit = \"reject\" (links of tc programs that can be pinned)",
                "6.6",
            )
            .into());
        }
        let surroundings = look_around(config.rules.iter().map(|rule| &rule.selector.reach))?;
        require_interfaces(&config.rules, &surroundings)?;
        announce_absent(&config.rules, &surroundings);
        let cgroups = Cgroups::find(&config.rules)?;
        announce_no_cgroup(&config.rules, &cgroups);
        let Config { mark, table, priority, steer, .. } = config;
        let mut journal = Journal::begin(Identity { mark, table, priority })?;
        if config.firewall == Firewall::LeftAlone {
            journal.give_up_admissions()?;
        }
        let sockets = LingeringSockets { config: config.clone() };
        let workers = config.workers as u32;
        let memory = config.timeouts.udp_stream;
        let compiled = Compiled::new(&config.rules, |reach| surroundings.limit(reach), &cgroups.of_rules);
        let sizes = Sizes::of(&config, compiled.sets.len());
        let settings = Settings { mark, steer, attachment, workers, memory, sizes, verbose };
        let mut datapath = Datapath::load_unless(settings, given_up)?;
        if verbose {
            datapath.forward_logs()?;
        }
        let flows = Flows::of_workers(config.workers);
        let ended = Arc::new(Notify::new());
        let generations = Generations::of(Generation::first(&config, Arc::clone(&ended)));
        let routing = Routing::default();
        generations.decider().set_hosts(routing.host_addresses().clone());
        let (workers, counters) = start_workers(&config, &generations, &flows, &routing, &mut datapath)?;
        let mut instance = Self {
            datapath,
            workers,
            counters,
            flows,
            draining: false,
            black_holes: Vec::new(),
            nat: KnownNat::found(),
            _sockets: sockets,
            journal,
            config,
            cgroups,
            compiled: compiled.into(),
            generations,
            superseded: Vec::new(),
            ended,
            surroundings,
            routing,
            addresses: Addresses::default(),
            discerning: Default::default(),
            landing: LandingMark::Steer,
            plan: Plan::default(),
            convergence: Convergence::new(Instant::now()),
            losses: losses::Losses::default(),
            is_steering: false,
        };
        instance.datapath.leave_alone(&instance.others()?)?;
        instance.set_host_addresses()?;
        instance.look_for_addresses()?;
        let mut attempt = Attempt::default();
        instance.converge(&mut attempt);
        if let Some(error) = attempt.errors.into_iter().next() {
            return Err(error);
        }
        instance.datapath.attach_lookup()?;
        instance.is_steering = true;
        instance.datapath.start_deciding()?;
        instance.provide_for_exit()?;
        instance.datapath.settled();
        Ok(instance)
    }

    /// The marks of the other instances of this network namespace.
    fn others(&self) -> Result<Vec<Mark>, InstanceError> {
        let living = host::on_record()?.into_iter().filter(|other| other.standing == Standing::Lives);
        let others: Vec<_> =
            living.map(|other| other.identity.mark).filter(|mark| *mark != self.config.mark).collect();
        if others.len() > MAX_OTHERS {
            tracing::warn!(
                "more than {MAX_OTHERS} other instances: two that select the same flow may take each other's"
            );
        }
        Ok(others)
    }

    /// Directories of cgroups in which something may happen that matters to rules.
    #[doc(hidden)]
    #[must_use]
    pub const fn cgroup_directories(&self) -> &BTreeSet<PathBuf> {
        &self.cgroups.looked_in
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

    /// Waits until the live flows have ended, at most [`Self::drain_limit`]. The host can be followed meanwhile.
    ///
    /// # Errors
    /// When the host cannot be asked.
    pub fn drained(&self) -> impl Future<Output = Result<(), InstanceError>> + use<> {
        let deadline = Instant::now() + self.drain_limit();
        let pulses: Vec<_> = self.workers.iter().map(Worker::liveness).collect();
        let finished = finished(pulses, self.config.mark, self.config.table);
        async move {
            match tokio::time::timeout_at(deadline.into(), finished).await {
                Ok(finished) => finished,
                Err(_elapsed) => Ok(()),
            }
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

/// Waits until no connection or session is live or about to be, and what closed ones still had to send is acknowledged. Of the
/// latter two the kernel gives no word, so it is asked.
async fn finished(workers: Vec<Liveness>, mark: Mark, table: u32) -> Result<(), InstanceError> {
    const BETWEEN_LOOKS: Duration = Duration::from_millis(20);
    let local = LocalTable::load(table)?;
    loop {
        join_all(workers.iter().map(Liveness::none)).await;
        match lingering::unfinished(mark, &local) {
            // Where the kernel does not tell, connections have ended all the same.
            Ok(0) | Err(HostError::NoSockDiag) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
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

/// Refuses what is named by mistake.
fn require_interfaces(rules: &[Rule], surroundings: &Surroundings) -> Result<(), InstanceError> {
    let addressed = if surroundings.names_parents(rules.iter().map(|rule| &rule.selector.reach)) {
        links::addressed()?
    } else {
        BTreeSet::new()
    };
    let misnamed = |rule: &Rule| {
        let misnamed = surroundings.misnamed(&rule.selector.reach, &addressed)?;
        Some(InstanceError::Misnamed { rule: rule.name.to_string(), misnamed })
    };
    rules.iter().find_map(misnamed).map_or(Ok(()), Err)
}

/// Says which interfaces have to come before a rule is about them.
fn announce_absent(rules: &[Rule], surroundings: &Surroundings) {
    for rule in rules {
        if let Some(name) = &rule.treatment.egress.interface
            && !surroundings.links.iter().any(|link| link.name == *name)
        {
            tracing::warn!(
                rule = &*rule.name,
                "there is no interface '{name}' (egress.interface): what the rule selects is unreachable until it comes"
            );
        }
        for name in surroundings.absent(&rule.selector.reach) {
            tracing::warn!(
                rule = &*rule.name,
                "there is no interface '{name}' (`ip link` shows those that there are): steering begins when it comes"
            );
        }
    }
}

/// Says which rules wait for a cgroup.
fn announce_no_cgroup(rules: &[Rule], cgroups: &Cgroups) {
    for (rule, found) in rules.iter().zip(&cgroups.of_rules) {
        if found.is_empty() && !rule.selector.cgroups.is_empty() {
            let named: Vec<_> = rule.selector.cgroups.iter().map(|path| path.display().to_string()).collect();
            tracing::warn!(
                rule = &*rule.name,
                "there is no cgroup {}: the rule selects nothing until there is",
                named.join(", ")
            );
        }
    }
}

/// The cgroups of each rule, as they are at the moment, and where others may appear.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Cgroups {
    of_rules: Vec<Vec<Cgroup>>,
    looked_in: BTreeSet<PathBuf>,
}

impl Cgroups {
    fn find(rules: &[Rule]) -> Result<Self, CgroupError> {
        let mut all = Self::default();
        for rule in rules {
            let mut of_rule = Vec::new();
            for named in &rule.selector.cgroups {
                let found = Cgroup::find(named)?;
                of_rule.extend(found.cgroups);
                all.looked_in.extend(found.looked_in);
            }
            all.of_rules.push(of_rule);
        }
        Ok(all)
    }
}
