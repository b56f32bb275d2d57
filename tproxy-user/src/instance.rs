//! One running instance in one network namespace: what it is made of, how it starts, follows the host, and stops.

mod look;

use std::{
    io, mem,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
pub use look::Look;
use socket2::Socket;
use tproxy_common::{flow::Protocol, verdict::Reason};

use crate::{
    config::{Action, Config, OnExit, Rule, Scope},
    datapath::{AttachError, Attachment, Datapath, DatapathError, Settings},
    family::Family,
    flows::Flows,
    generation::{Generation, Generations},
    host::{
        Change, Direction, HostError, Identity, Journal, lingering,
        links::{self, Changed, Link},
        local_table::{self, LocalTable},
        pins, preflight,
        sysctl::Sysctl,
    },
    mark::Mark,
    plan::{Plan, Surroundings},
    policy::{Cgroup, CgroupError, Compiled, Extent},
    socket::{self, SocketError},
    tcp::{self, TcpCounters},
    udp::{self, UdpCounters},
    worker::{Pulse, Worker, WorkerSetup},
};

mod changes;
mod reload;

pub use changes::Changes;
use reload::Superseded;
use tokio::sync::Notify;

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
        // Twice what is needed now: interfaces may come, and so may other rules.
        let sets =
            2 * Compiled::new(&config.rules, |rule| surroundings.limit(rule), &cgroups).sets.len() as u32;
        let settings = Settings { mark, steer, attachment, workers, memory, sets, verbose };
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

    /// Adapts to what changed on the host.
    ///
    /// # Errors
    /// When the host or the kernel refuses; what was in place before still is.
    pub fn follow(&mut self, changed: Changed) -> Result<(), InstanceError> {
        if changed.local_table {
            self.set_host_addresses()?;
        }
        if changed.links || changed.routes {
            let now = look_around()?;
            if now == self.surroundings {
                return Ok(());
            }
            let before = mem::replace(&mut self.surroundings, now);
            let plan = self.plan.clone();
            self.carry_out()?;
            self.report_interfaces(&before, &plan);
        }
        Ok(())
    }

    /// Worker threads end only when they are told to, or panic; completes when one has.
    pub async fn worker_ended(&self) {
        let ended: Vec<_> = self.workers.iter().map(|worker| Box::pin(worker.ended())).collect();
        futures_util::future::select_all(ended).await;
    }

    /// Those of its workers.
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
            if lingering::unfinished(self.config.mark, &local)? == 0 {
                return Ok(());
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
            Ok(counters) => tracing::info!("packets: {}", in_words(&counters)),
            Err(error) => tracing::warn!("packets: {error}"),
        }
    }

    fn set_host_addresses(&mut self) -> Result<(), InstanceError> {
        let local = LocalTable::load(self.config.table)?;
        Ok(self.datapath.set_host_addresses(local.prefixes())?)
    }

    /// Makes hooks, rules and tables what the surroundings ask for. First what delivers, then what steers.
    fn carry_out(&mut self) -> Result<(), InstanceError> {
        let plan = self.surroundings.plan(self.rules());
        // One interface that refuses must not keep the rules from the others.
        let prepared = self.prepare(&plan);
        self.switch()?;
        self.tidy(plan)?;
        prepared
    }

    /// The rules, and those of earlier generations that still have flows.
    fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.config.rules.iter().chain(self.superseded.iter().flat_map(|superseded| &*superseded.rules))
    }

    /// Adds what `plan` needs.
    fn prepare(&mut self, plan: &Plan) -> Result<(), InstanceError> {
        let drops = |rule: &Rule| rule.scope == Scope::Inbound && rule.action == Action::Drop;
        if self.black_holes.is_empty() && self.rules().any(drops) {
            self.black_holes = open_black_holes(self.config.mark, &mut self.datapath)?;
        }
        for sysctl in &plan.loopback {
            let sysctl = Sysctl::new("lo", Family::V4, sysctl.key())?;
            self.journal.apply(Change::Sysctl { sysctl, value: "1".into() })?;
        }
        for iif in &plan.delivering {
            for change in rules_for(iif) {
                self.journal.apply(change)?;
            }
        }
        self.attach(plan)
    }

    /// Has the datapath decide by the latest rules, given the surroundings.
    fn switch(&mut self) -> Result<(), InstanceError> {
        let surroundings = &self.surroundings;
        let compiled = Compiled::new(&self.config.rules, |rule| surroundings.limit(rule), &self.cgroups);
        let extents = self.superseded.iter().map(|superseded| Extent::of(&superseded.rules));
        let lasting = extents.fold(Extent::default(), Extent::and);
        Ok(self.datapath.install(&compiled, self.generations.latest().number(), lasting)?)
    }

    /// Removes what `plan` does not need.
    fn tidy(&mut self, plan: Plan) -> Result<(), InstanceError> {
        for (link, hook) in self.datapath.attached() {
            if !plan.hooks.contains(&(link.index, hook)) {
                self.datapath.detach_from(link.index, hook)?;
                self.journal.revert(&tc_filter(&link, hook))?;
            }
        }
        let was = mem::replace(&mut self.plan, plan);
        for iif in was.delivering.difference(&self.plan.delivering) {
            for change in rules_for(iif) {
                self.journal.revert(&change)?;
            }
        }
        Ok(())
    }

    fn attach(&mut self, plan: &Plan) -> Result<(), InstanceError> {
        let mut outcome = Ok(());
        for (index, hook) in &plan.hooks {
            let Some(link) = self.surroundings.links.iter().find(|link| link.index == *index) else {
                continue;
            };
            if self.datapath.attachment() == Attachment::Clsact {
                self.journal.apply(tc_filter(link, *hook))?;
            }
            match self.datapath.attach(link, *hook) {
                // Word of its end is on the way.
                Err(DatapathError::Attach(AttachError::Gone(_))) => {}
                Err(error) => outcome = Err(error.into()),
                Ok(()) => {}
            }
        }
        outcome
    }

    /// Says which of the interfaces that mattered are gone, and which matter now.
    fn report_interfaces(&self, before: &Surroundings, plan: &Plan) {
        let hooked = |plan: &Plan, link: &Link| plan.hooks.iter().any(|(index, _)| *index == link.index);
        for link in gone(before, &self.surroundings).filter(|link| hooked(plan, link)) {
            tracing::warn!(interface = link.name, "interface disappeared");
        }
        for link in &self.surroundings.links {
            if hooked(&self.plan, link) && !hooked(plan, link) {
                tracing::info!(interface = link.name, "interface appeared: steering is in place on it");
            }
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
            Err(error) => tracing::error!("{error}"),
        }
    }
}

/// Where one worker counts.
#[derive(Default)]
struct Counters {
    tcp: Arc<TcpCounters>,
    udp: Arc<UdpCounters>,
}

fn start_workers(
    config: &Config,
    generations: &Generations,
    flows: &Flows,
    datapath: &mut Datapath,
) -> Result<(Vec<Worker>, Vec<Counters>), InstanceError> {
    let mut sockets = Vec::new();
    for worker in 0..config.workers {
        sockets.push((open_listeners(worker, config, datapath)?, open_udp(worker, config, datapath)?));
    }
    let address_of = |socket: &Socket| socket.local_addr().ok().and_then(|addr| addr.as_socket());
    let tcp_bound: Arc<[SocketAddr]> =
        sockets.iter().flat_map(|(tcp, _)| tcp).filter_map(address_of).collect();
    let udp_bound: Arc<[SocketAddr]> =
        sockets.iter().flat_map(|(_, udp)| udp).filter_map(|udp| address_of(udp.listener())).collect();
    let mut workers = Vec::new();
    let mut counters = Vec::new();
    for (index, (listeners, sockets)) in sockets.into_iter().enumerate() {
        let own = Counters::default();
        let tcp = tcp::Setup {
            listeners,
            bound: Arc::clone(&tcp_bound),
            generations: generations.clone(),
            mark: config.mark,
            decisions: Box::new(datapath.decisions(own.tcp.accept_latency())?),
            counters: Arc::clone(&own.tcp),
            flows: flows.table(index),
        };
        let udp = udp::Setup {
            sockets,
            bound: Arc::clone(&udp_bound),
            generations: generations.clone(),
            workers: config.workers,
            mark: config.mark,
            memory: Box::new(datapath.memory()?),
            counters: Arc::clone(&own.udp),
            flows: flows.table(index),
        };
        workers
            .push(Worker::spawn(WorkerSetup { index, tcp, udp: Some(udp) }).map_err(InstanceError::Worker)?);
        counters.push(own);
    }
    Ok((workers, counters))
}

/// The TCP listeners of a worker, one for each address family.
fn open_listeners(
    worker: usize,
    config: &Config,
    datapath: &mut Datapath,
) -> Result<Vec<Socket>, InstanceError> {
    let open = |family| {
        let listener = socket::listener(family, config.mark)?;
        datapath.set_listener(worker as u32, Protocol::Tcp, family, &listener)?;
        Ok(listener)
    };
    Family::available().map(open).collect()
}

/// The UDP sockets of a worker, a set for each address family. Rules about UDP may come later.
fn open_udp(
    worker: usize,
    config: &Config,
    datapath: &mut Datapath,
) -> Result<Vec<udp::Sockets>, InstanceError> {
    let open = |family| {
        let sockets = udp::Sockets::open(family, config.mark)?;
        datapath.set_listener(worker as u32, Protocol::Udp, family, sockets.listener())?;
        Ok(sockets)
    };
    Family::available().map(open).collect()
}

/// Where flows end that scope `inbound` drops; the datapath's hooks for the other scopes can drop by themselves.
fn open_black_holes(mark: Mark, datapath: &mut Datapath) -> Result<Vec<Socket>, InstanceError> {
    let mut holes = Vec::new();
    for protocol in Protocol::ALL {
        for family in Family::available() {
            let hole = match protocol {
                Protocol::Tcp => socket::black_hole(family, mark)?,
                Protocol::Udp => socket::datagram_black_hole(family, mark)?,
            };
            datapath.set_black_hole(protocol, family, &hole)?;
            holes.push(hole);
        }
    }
    Ok(holes)
}

fn look_around() -> Result<Surroundings, HostError> {
    Ok(Surroundings { links: links::snapshot()?, routed: local_table::routed_interfaces()? })
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

fn tc_filter(link: &Link, hook: Direction) -> Change {
    Change::TcFilter { interface: link.name.clone(), index: link.index, direction: hook }
}

fn rules_for(iif: &str) -> impl Iterator<Item = Change> {
    Family::available().map(|family| Change::Rule { family, iif: iif.to_owned() })
}

fn gone<'a>(before: &'a Surroundings, now: &'a Surroundings) -> impl Iterator<Item = &'a Link> {
    before.links.iter().filter(|link| !now.links.iter().any(|other| other.index == link.index))
}

/// What was counted, but for zeroes.
fn in_words(counters: &[(Reason, u64)]) -> String {
    let seen = counters.iter().filter(|(_, count)| *count > 0);
    let words: Vec<_> = seen.map(|(reason, count)| format!("{}={count}", reason.name())).collect();
    if words.is_empty() { "none".into() } else { words.join(" ") }
}

#[cfg(test)]
mod tests;
