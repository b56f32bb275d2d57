//! Hidden subcommands that the benchmark runs on its gateways.

use std::{io::Write as _, sync::Arc};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::steering;
use crate::{
    config::Config,
    family::Family,
    flow::{ClientAddr, OriginalDst},
    flows::Flows,
    socket,
    tcp::{self, Decisions, TcpCounters},
    worker::{RuleIndex, Worker, WorkerSetup},
};

/// What comes before the ports of the listeners, one a worker.
pub(super) const READY: &str = "listening on ports ";

/// `tproxy bench-many`
#[derive(Debug, clap::Args)]
pub struct Many {
    /// Rules before the one of the flags
    #[arg(long)]
    fillers: usize,
    #[command(flatten)]
    run: crate::cli::Run,
}

impl Many {
    /// The flags' rule as the last of many, which differ in destination and port.
    ///
    /// # Errors
    /// Flags that do not go together.
    pub fn into_config(self) -> anyhow::Result<Config> {
        let mut config = self.run.into_config()?;
        let rule = config.rules.last().context("flags make a rule")?.clone();
        let filler = |index| {
            let (destination, port) = steering::filler(index);
            anyhow::Ok(crate::config::Rule {
                to: vec![destination.parse()?],
                ports: vec![port..=port],
                ..rule.clone()
            })
        };
        let fillers = (0..self.fillers).map(filler).collect::<Result<Vec<_>, _>>()?;
        config.rules.splice(0..0, fillers);
        Ok(config)
    }
}

/// The workers of `tproxy run` without its datapath: somebody else steers to their listeners.
///
/// # Errors
/// Whatever keeps them from starting.
pub async fn without_datapath(config: Config) -> anyhow::Result<()> {
    let mut stop = signal(SignalKind::terminate())?;
    let mut ports = Vec::new();
    let mut workers = Vec::new();
    let flows = Flows::of_workers(config.workers);
    for index in 0..config.workers {
        let listener = socket::listener(Family::V4, config.mark)?;
        let address = listener.local_addr()?.as_socket().context("a listener has an address")?;
        ports.push(address.port().to_string());
        let tcp = tcp::Setup {
            listeners: vec![listener],
            bound: Arc::new([address]),
            rules: config.rules.clone().into(),
            timeouts: config.timeouts,
            mark: config.mark,
            decisions: Box::new(Everything),
            counters: Arc::new(TcpCounters::default()),
            flows: flows.table(index),
        };
        workers.push(Worker::spawn(WorkerSetup { index, tcp, udp: None })?);
    }
    writeln!(std::io::stdout(), "{READY}{}", ports.join(" "))?;
    stop.recv().await;
    drop(workers);
    Ok(())
}

/// Whatever comes was selected by the one rule that there is.
struct Everything;

impl Decisions for Everything {
    fn take(&mut self, _: ClientAddr, _: OriginalDst) -> Option<RuleIndex> {
        Some(RuleIndex(0))
    }
}
