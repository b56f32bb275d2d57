//! What is answered, as JSON.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tproxy::{
    config::{Action, Pick, RuleEgress, Source, Upstream, UpstreamServer},
    flows::{FlowProtocol, FlowScope, LiveFlow, ShownFlow},
    generation::KeptRule,
    host::{Direction, InstanceName},
    instance::Look,
    upstreams::{Pool, Server},
};
use tproxy_common::flow::Protocol;

use super::Shown;

/// Numbers by name; what is zero is left out.
pub type Counts = BTreeMap<String, u64>;

/// `GET /status`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What it is called.
    pub name: InstanceName,
    /// Of the program.
    pub version: String,
    /// Of its process.
    pub pid: u32,
    /// Since it was ready.
    pub uptime_seconds: f64,
    /// Whether it takes new flows.
    pub state: ShownState,
    /// The bits of the packet mark that are its own.
    pub mark: String,
    /// Its routing table.
    pub table: u32,
    /// Its threads that serve flows.
    pub workers: usize,
    /// How many rules it has.
    pub rules: usize,
    /// Which generation of the rules holds: each reload that changes something makes another.
    pub generation: u32,
    /// What is missing of what the rules need, and why; it is tried again until it is there.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub missing: Vec<String>,
    /// How often something was put back that others had taken away.
    #[serde(default)]
    pub restored: u64,
    /// What is steered and does not arrive, and the likely reason.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub lost: Vec<String>,
    /// Where it sees packets, besides at the listener lookup.
    pub hooks: Vec<ShownHook>,
    /// Where Prometheus can ask.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub metrics: Option<SocketAddr>,
    /// Flows at the moment.
    pub live: ShownLive,
    /// What was counted about TCP.
    pub connections: Counts,
    /// What was counted about UDP.
    pub datagrams: Counts,
    /// Packets by what was decided, and why.
    pub packets: Counts,
}

/// Whether new flows are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShownState {
    /// They are.
    Running,
    /// They are not any more; the process ends with the last live one.
    Draining,
}

impl ShownState {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Draining => "draining",
        }
    }
}

/// A tc hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownHook {
    /// Of the interface.
    pub interface: String,
    /// Which of its two.
    pub direction: Direction,
}

/// Flows at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownLive {
    /// TCP.
    pub connections: u64,
    /// UDP.
    pub sessions: u64,
}

/// One of `GET /rules`, in the order in which they are tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownRule {
    /// Its name.
    pub name: String,
    /// Which traffic it looks at.
    pub scope: FlowScope,
    /// Which protocols it is about.
    pub protocols: Vec<FlowProtocol>,
    /// What becomes of a flow that it selects.
    pub action: String,
    /// The servers that it may go by.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub servers: Vec<String>,
    /// Whose address the upstream sees.
    #[serde(default)]
    pub source: Source,
    /// The way that the rule chooses, if it does.
    #[serde(default)]
    pub egress: RuleEgress,
    /// Flows it has decided.
    pub hits: u64,
    /// Flows by it at the moment.
    pub live: u64,
}

/// One of `GET /upstreams`: a group, or the only server of a rule's own URL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShownUpstream {
    /// As rules write it: `@NAME`, or the URL.
    pub upstream: String,
    /// Which of its servers is tried first.
    pub pick: Pick,
    /// In the order of the configuration.
    pub servers: Vec<ShownServer>,
}

/// A server of an upstream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShownServer {
    /// Its URL.
    pub url: String,
    /// Whether it is there.
    pub state: ShownServerState,
    /// How long it took of late until it stood for a destination, or was looked at.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub latency_seconds: Option<f64>,
    /// Flows by it at the moment.
    pub live: u64,
    /// Flows that went by it.
    pub connected: u64,
    /// Flows for which it failed.
    pub failed: u64,
    /// How it fails.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

/// Whether a server is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShownServerState {
    /// Nobody has asked yet.
    Unknown,
    /// It was, when it was needed or looked at last.
    Up,
    /// It was not.
    Failing,
}

impl ShownServerState {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Failing => "failing",
        }
    }
}

/// One line of `GET /flows?follow=true`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum FlowEvent {
    /// It was there already.
    Live(ShownFlow),
    /// It was accepted.
    Began(ShownFlow),
    /// It is over.
    Ended(ShownFlow),
    /// So many events could not be told.
    Missed {
        /// How many.
        events: u64,
    },
}

/// `POST /close`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// Flows that were told to end.
    pub closed: usize,
}

/// `POST /drain`
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ShownDraining {
    /// Flows that are live.
    pub live: usize,
    /// How long they have.
    pub limit_seconds: f64,
}

/// `POST /reload`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reloaded {
    /// What has changed, on one line.
    pub changes: String,
    /// How long there is to confirm it, if it has to be.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub confirm_within_seconds: Option<f64>,
}

/// The query of `GET /check`; the answer is [`Changes`](tproxy::instance::Changes).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checked {
    /// The file that the instance is to read, by its absolute path.
    pub file: PathBuf,
}

/// `POST /confirm`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// Always true: the reload is kept.
    pub confirmed: bool,
}

/// What is answered when it could not be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What is wrong and the remedy, on one line; of a file a line for each thing.
    pub error: String,
}

impl Status {
    pub(super) fn of(look: &Look, shown: &Shown) -> Self {
        let hook = |(interface, direction): &(String, Direction)| ShownHook {
            interface: interface.clone(),
            direction: *direction,
        };
        let packets = look.packets.iter().map(|(reason, count)| (reason.name(), *count));
        Self {
            name: shown.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: shown.started.elapsed().as_millis() as f64 / 1000.0,
            state: if look.draining { ShownState::Draining } else { ShownState::Running },
            mark: look.identity.mark.to_string(),
            table: look.identity.table,
            workers: look.workers,
            rules: look.rules.len(),
            generation: look.generation,
            missing: look.health.missing.clone(),
            restored: look.health.restored,
            lost: look.losses.iter().map(ToString::to_string).collect(),
            hooks: look.hooks.iter().map(hook).collect(),
            metrics: shown.metrics,
            live: ShownLive { connections: look.tcp.active(), sessions: look.udp.active() },
            connections: counts(look.tcp.iter()),
            datagrams: counts(look.udp.iter()),
            packets: counts(packets),
        }
    }
}

impl ShownRule {
    pub(super) fn all(look: &Look, live: &[Arc<LiveFlow>]) -> Vec<Self> {
        let mut by_name: HashMap<&str, u64> = HashMap::new();
        for flow in live {
            *by_name.entry(&flow.selection().rule).or_default() += 1;
        }
        let shown = |rule: &KeptRule| Self {
            name: rule.name.as_ref().to_owned(),
            scope: rule.reach.scope.into(),
            protocols: Protocol::ALL
                .into_iter()
                .filter(|protocol| rule.reach.protocols.include(*protocol))
                .map(FlowProtocol::from)
                .collect(),
            action: rule.treatment.action.to_string(),
            servers: match &rule.treatment.action {
                Action::Upstream(Upstream::Group(group)) => {
                    group.servers.iter().map(UpstreamServer::to_string).collect()
                }
                _ => Vec::new(),
            },
            source: rule.treatment.source,
            egress: rule.treatment.egress.clone(),
            hits: look.hits.get(&rule.name).copied().unwrap_or_default(),
            live: by_name.get(&*rule.name).copied().unwrap_or_default(),
        };
        look.rules.iter().map(shown).collect()
    }
}

impl ShownUpstream {
    pub(super) fn of(pool: &Pool) -> Self {
        let servers = pool.servers().iter().map(|server| ShownServer::of(server)).collect();
        Self { upstream: pool.group().to_string(), pick: pool.group().pick, servers }
    }
}

impl ShownServer {
    fn of(server: &Server) -> Self {
        let health = server.health();
        let state = match (&health.failing, health.latency) {
            (Some(_), _) => ShownServerState::Failing,
            (None, Some(_)) => ShownServerState::Up,
            (None, None) => ShownServerState::Unknown,
        };
        let [connected, failed] = server.flows();
        Self {
            url: server.url().to_string(),
            state,
            latency_seconds: health.latency.map(|latency| latency.as_micros() as f64 / 1e6),
            live: server.live(),
            connected,
            failed,
            error: health.failing.map(|(_, error)| error.to_string()),
        }
    }
}

fn counts<'a>(counted: impl Iterator<Item = (&'a str, u64)>) -> Counts {
    counted.filter(|(_, count)| *count > 0).map(|(name, count)| (name.to_owned(), count)).collect()
}
