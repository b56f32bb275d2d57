//! Hidden subcommands that the benchmark runs on its gateways.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use ipnet::IpNet;
use socket2::Socket;
use tokio::signal::unix::{SignalKind, signal};
use tproxy::{
    config::{Config, Flags, Listed, NamedSet, Rule, Selector},
    family::Family,
    flow::{ClientAddr, OriginalDst},
    flows::Flows,
    generation::{Generation, Generations, RuleNumber},
    socket,
    tcp::{self, Decided, Decisions, Syn},
    udp::{self, Memory, Selected, Sockets},
    way::Routing,
    worker::{Worker, WorkerSetup},
};
use tproxy_common::abi::Origin;

use super::steering::{self, Listeners};

/// What comes before the ports of the listeners.
pub(super) const READY: &str = "listening on ";

/// `tproxy bench-many`
#[derive(Debug, clap::Args)]
pub struct Many {
    /// Rules before the one of the flags
    #[arg(long)]
    fillers: usize,
    /// Prefixes that those have beside one each, shared by 64 of them at a time
    #[arg(long, default_value_t = 0)]
    prefixes: u32,
    #[command(flatten)]
    flags: Flags,
}

impl Many {
    /// The flags' rule as the last of many, which differ in destination and port.
    ///
    /// # Errors
    /// Flags that do not go together.
    pub fn into_config(self) -> anyhow::Result<Config> {
        let Self { fillers, prefixes, flags } = self;
        let mut config = flags.into_config()?;
        let rule = config.rules.last().context("flags make a rule")?.clone();
        let number = fillers.div_ceil(steering::FILLERS_EACH);
        let sets: Vec<_> = (0..number).map(|set| shared(prefixes, set, number)).collect();
        let filler = |index: usize| {
            let (destination, port) = steering::filler(index);
            let set = Arc::clone(&sets[index / steering::FILLERS_EACH]);
            let to = Listed { own: vec![destination.parse()?], sets: vec![set] };
            let selector = Selector { to, ports: vec![port..=port].into(), ..rule.selector.clone() };
            anyhow::Ok(Rule { selector, ..rule.clone() })
        };
        let fillers = (0..fillers).map(filler).collect::<Result<Vec<_>, _>>()?;
        config.rules.splice(0..0, fillers);
        Ok(config)
    }
}

/// One in `sets` of the prefixes, each an address that nobody connects to.
fn shared(prefixes: u32, set: usize, sets: usize) -> Arc<NamedSet<IpNet>> {
    let address = |index: u32| IpNet::from(IpAddr::from(Ipv4Addr::from_bits(NOBODY.to_bits() + index)));
    let members = (0..prefixes).skip(set).step_by(sets).map(address).collect();
    Arc::new(NamedSet { name: set.to_string().into(), members })
}

/// The first of addresses that no workload uses.
const NOBODY: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 0);

/// The workers of `tproxy run` without its datapath: somebody else steers to their listeners.
///
/// # Errors
/// Whatever keeps them from starting.
pub async fn without_datapath(config: Config) -> anyhow::Result<()> {
    let mut stop = signal(SignalKind::terminate())?;
    let generations = Generations::of(Generation::first(&config, Arc::default()));
    let (mut tcp, mut udp) = (Vec::new(), Vec::new());
    for _ in 0..config.workers {
        tcp.push(socket::listener(Family::V4, config.mark)?);
        udp.push(Sockets::open(Family::V4, config.mark)?);
    }
    let listeners = Listeners {
        tcp: tcp.iter().map(port).collect::<Result<_, _>>()?,
        udp: udp.iter().map(|sockets| port(sockets.listener())).collect::<Result<_, _>>()?,
    };
    let bound =
        |ports: &[u16]| ports.iter().map(|port| (Ipv4Addr::LOCALHOST, *port).into()).collect::<Arc<[_]>>();
    let (bound_tcp, bound_udp) = (bound(&listeners.tcp), bound(&listeners.udp));
    let mut workers = Vec::new();
    let flows = Flows::of_workers(config.workers);
    for (index, (tcp, udp)) in tcp.into_iter().zip(udp).enumerate() {
        let tcp = tcp::Setup {
            listeners: vec![tcp],
            bound: Arc::clone(&bound_tcp),
            generations: generations.clone(),
            mark: config.mark,
            routing: Routing::default(),
            decisions: Box::new(AlwaysSelected),
            counters: Arc::default(),
            syns: None,
            flows: flows.table(index),
        };
        let udp = udp::Setup {
            sockets: vec![udp],
            bound: Arc::clone(&bound_udp),
            generations: generations.clone(),
            // Each may have as many as there may be: how they are shared out is the steering's business.
            workers: 1,
            mark: config.mark,
            routing: Routing::default(),
            endpoints: udp::Endpoints::default(),
            memory: Box::new(AlwaysSelected),
            counters: Arc::default(),
            flows: flows.table(index),
        };
        workers.push(Worker::spawn(WorkerSetup {
            index,
            workers: config.workers,
            tcp,
            udp: Some(udp),
            beat: None,
            upkeep: None,
        })?);
    }
    ready(&listeners)?;
    stop.recv().await;
    drop(workers);
    Ok(())
}

/// Says that all listeners are there, and where.
pub(super) fn ready(listeners: &Listeners) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{READY}{}", serde_json::to_string(listeners)?)?)
}

/// What [`ready`] said.
pub(super) fn parse_ready(line: &str) -> serde_json::Result<Listeners> {
    serde_json::from_str(line.trim_start_matches(READY))
}

pub(super) fn port(socket: &Socket) -> anyhow::Result<u16> {
    let address = socket.local_addr()?.as_socket();
    Ok(address.context("a listener has an address")?.port())
}

/// Whatever comes was selected by the one rule that there is.
struct AlwaysSelected;

impl Decisions for AlwaysSelected {
    fn take(&mut self, _: ClientAddr, _: OriginalDst) -> Option<Decided> {
        Some(Decided { rule: RuleNumber(0), origin: Origin::default() })
    }

    fn admit(&mut self, _: &Syn) {}

    fn leave_alone(&mut self, _: &Syn) {}

    fn release(&mut self, _: ClientAddr, _: OriginalDst) {}

    fn reached(&mut self, _: OriginalDst, _: Duration) {}

    fn unreached(&mut self, _: OriginalDst) {}
}

impl Memory for AlwaysSelected {
    fn selected(&mut self, _: ClientAddr, _: OriginalDst) -> Option<Selected> {
        Some(Selected::By(RuleNumber(0), Origin::default(), None))
    }

    fn expect(&mut self, _: ClientAddr, _: OriginalDst, _: RuleNumber, _: &Origin) {}

    fn forget(&mut self, _: ClientAddr, _: OriginalDst) {}
}
