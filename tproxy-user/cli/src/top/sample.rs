//! What was seen at one moment, and what two moments say together.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use tproxy::flows::{FlowId, ShownFlow};

use crate::control::{Counts, ShownRule, Status};

/// One look at an instance.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) status: Status,
    pub(super) rules: Vec<ShownRule>,
    pub(super) flows: Vec<ShownFlow>,
}

/// How much a second.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct ByteRates {
    pub(super) up: f64,
    pub(super) down: f64,
}

/// A rule, with how it is used.
#[derive(Debug)]
pub(super) struct RatedRule {
    pub(super) rule: ShownRule,
    pub(super) hits: f64,
    pub(super) bytes: ByteRates,
}

/// A client address, with what it uses.
#[derive(Debug)]
pub(super) struct RatedClient {
    pub(super) address: IpAddr,
    pub(super) flows: usize,
    pub(super) bytes: ByteRates,
}

/// A flow, with what it moves.
#[derive(Debug)]
pub(super) struct RatedFlow {
    pub(super) flow: ShownFlow,
    pub(super) bytes: ByteRates,
}

/// All that is shown of the latest look, compared with the one before.
#[derive(Debug)]
pub(super) struct Picture {
    pub(super) status: Status,
    pub(super) accepted: f64,
    pub(super) sessions: f64,
    pub(super) bytes: ByteRates,
    pub(super) rules: Vec<RatedRule>,
    pub(super) clients: Vec<RatedClient>,
    pub(super) flows: Vec<RatedFlow>,
}

impl Picture {
    pub(super) fn of(before: Option<&Sample>, now: Sample) -> Self {
        // The instance may be another one meanwhile.
        let before = before.filter(|before| before.status.uptime_seconds < now.status.uptime_seconds);
        let seconds = before.map_or(0.0, |before| now.status.uptime_seconds - before.status.uptime_seconds);
        let rate = |now: u64, before: u64| {
            if seconds > 0.0 { now.saturating_sub(before) as f64 / seconds } else { 0.0 }
        };
        let flows = rated_flows(before, now.flows, &rate);
        let growth = |of: fn(&Status) -> &Counts, name: &str| {
            let count = |status| of(status).get(name).copied().unwrap_or_default();
            rate(count(&now.status), before.map_or(0, |before| count(&before.status)))
        };
        let bytes =
            |name| growth(|status| &status.connections, name) + growth(|status| &status.datagrams, name);
        Self {
            accepted: growth(|status| &status.connections, "accepted"),
            sessions: growth(|status| &status.datagrams, "sessions"),
            bytes: ByteRates { up: bytes("bytes_up"), down: bytes("bytes_down") },
            rules: rated_rules(before, now.rules, &flows, &rate),
            clients: rated_clients(&flows),
            flows,
            status: now.status,
        }
    }
}

fn rated_flows(
    before: Option<&Sample>,
    flows: Vec<ShownFlow>,
    rate: &impl Fn(u64, u64) -> f64,
) -> Vec<RatedFlow> {
    let known: HashMap<FlowId, &ShownFlow> =
        before.into_iter().flat_map(|before| &before.flows).map(|flow| (flow.id, flow)).collect();
    let rated = |flow: ShownFlow| {
        let (up, down) = known.get(&flow.id).map_or((0, 0), |before| (before.bytes_up, before.bytes_down));
        RatedFlow {
            bytes: ByteRates { up: rate(flow.bytes_up, up), down: rate(flow.bytes_down, down) },
            flow,
        }
    };
    flows.into_iter().map(rated).collect()
}

/// The busiest first; rules that nothing happens to in their own order.
fn rated_rules(
    before: Option<&Sample>,
    rules: Vec<ShownRule>,
    flows: &[RatedFlow],
    rate: &impl Fn(u64, u64) -> f64,
) -> Vec<RatedRule> {
    let known: HashMap<&str, u64> =
        before.into_iter().flat_map(|before| &before.rules).map(|rule| (&*rule.name, rule.hits)).collect();
    let mut bytes: HashMap<&str, ByteRates> = HashMap::new();
    for flow in flows {
        bytes.entry(&flow.flow.rule).or_default().add(flow.bytes);
    }
    let rated = |rule: ShownRule| RatedRule {
        hits: rate(rule.hits, known.get(&*rule.name).copied().unwrap_or_default()),
        bytes: bytes.get(&*rule.name).copied().unwrap_or_default(),
        rule,
    };
    let mut rated: Vec<_> = rules.into_iter().map(rated).collect();
    rated.sort_by(|a, b| b.hits.total_cmp(&a.hits).then(b.rule.live.cmp(&a.rule.live)));
    rated
}

/// The busiest first.
fn rated_clients(flows: &[RatedFlow]) -> Vec<RatedClient> {
    let mut clients: BTreeMap<IpAddr, RatedClient> = BTreeMap::new();
    for RatedFlow { flow, bytes } in flows {
        let address = flow.client.ip();
        let client =
            clients.entry(address).or_insert(RatedClient { address, flows: 0, bytes: ByteRates::default() });
        client.flows += 1;
        client.bytes.add(*bytes);
    }
    let mut clients: Vec<_> = clients.into_values().collect();
    clients.sort_by_key(|client| Reverse((client.bytes.all() as u64, client.flows)));
    clients
}

impl ByteRates {
    fn add(&mut self, more: Self) {
        self.up += more.up;
        self.down += more.down;
    }

    pub(super) fn all(self) -> f64 {
        self.up + self.down
    }
}
