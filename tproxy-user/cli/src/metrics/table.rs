//! Which metrics there are.

use std::{fmt::Write as _, sync::Arc};

use tproxy::{
    arrivals::Entrance,
    flows::FlowProtocol,
    instance::Loss,
    latency::Latencies,
    upstreams::{Pool, Server},
};
use tproxy_common::verdict::Reason;

use super::{Metric, MetricKind, MetricSample, MetricValue, Observed, Unit};
use crate::run::Reloads;

/// All of them.
pub const METRICS: &[Metric] = &[
    Metric {
        name: "tproxy_build_info",
        kind: MetricKind::Gauge,
        unit: None,
        labels: &["version"],
        help: "Always 1; the version is in the label",
        samples: |_| vec![labelled([env!("CARGO_PKG_VERSION")], 1)],
    },
    Metric {
        name: "tproxy_uptime",
        kind: MetricKind::Gauge,
        unit: Some(Unit::Seconds),
        labels: &[],
        help: "Time since steering was in place",
        samples: |observed| {
            vec![MetricSample { labels: vec![], value: MetricValue::Number(observed.uptime.as_secs_f64()) }]
        },
    },
    Metric {
        name: "tproxy_draining",
        kind: MetricKind::Gauge,
        unit: None,
        labels: &[],
        help: "1 while no new flow is taken because the instance is about to stop, otherwise 0",
        samples: |observed| vec![plain(observed.look.draining.into())],
    },
    Metric {
        name: "tproxy_missing",
        kind: MetricKind::Gauge,
        unit: None,
        labels: &["error"],
        help: "1 for each thing that the rules need and the host does not give, until it does",
        samples: |observed| observed.look.health.missing.iter().map(|error| labelled([error], 1)).collect(),
    },
    Metric {
        name: "tproxy_failures",
        kind: MetricKind::Counter,
        unit: None,
        labels: &[],
        help: "How often something that the rules need could not be had",
        samples: |observed| vec![plain(observed.look.health.failures)],
    },
    Metric {
        name: "tproxy_restored",
        kind: MetricKind::Counter,
        unit: None,
        labels: &[],
        help: "How often something was put back that others had taken away: routing rules, routes, sysctls, hooks",
        samples: |observed| vec![plain(observed.look.health.restored)],
    },
    Metric {
        name: "tproxy_lost",
        kind: MetricKind::Gauge,
        unit: None,
        labels: &["interface", "family", "protocol"],
        help: "1 where flows are steered and none arrives: a firewall or routing on this host takes them",
        samples: |observed| {
            let sample = |loss: &Loss| {
                let Entrance { family, protocol, .. } = loss.entrance;
                labelled([&*loss.interface, &family.to_string(), FlowProtocol::from(protocol).name()], 1)
            };
            observed.look.losses.iter().map(sample).collect()
        },
    },
    Metric {
        name: "tproxy_connections_accepted",
        kind: MetricKind::Counter,
        unit: None,
        labels: &[],
        help: "TCP connections taken off a listener",
        samples: |observed| vec![plain(observed.look.tcp.accepted)],
    },
    Metric {
        name: "tproxy_connections",
        kind: MetricKind::Gauge,
        unit: None,
        labels: &[],
        help: "TCP connections that are live",
        samples: |observed| vec![plain(observed.look.tcp.active())],
    },
    Metric {
        name: "tproxy_connections_ended",
        kind: MetricKind::Counter,
        unit: None,
        labels: &["end"],
        help: "TCP connections by how they ended, which names the error if it was one",
        samples: |observed| {
            observed.look.tcp.ends.iter().map(|(end, count)| labelled([end.name()], *count)).collect()
        },
    },
    Metric {
        name: "tproxy_connections",
        kind: MetricKind::Counter,
        unit: Some(Unit::Bytes),
        labels: &["direction"],
        help: "Bytes of TCP connections: up is from clients, down is to clients",
        samples: |observed| both(observed.look.tcp.bytes_up, observed.look.tcp.bytes_down),
    },
    Metric {
        name: "tproxy_accept_latency",
        kind: MetricKind::Histogram,
        unit: Some(Unit::Seconds),
        labels: &[],
        help: "Time from a connection's first packet to its accept, the handshake with the client included",
        samples: |observed| vec![latencies(observed.look.tcp.accept_latency)],
    },
    Metric {
        name: "tproxy_connect_latency",
        kind: MetricKind::Histogram,
        unit: Some(Unit::Seconds),
        labels: &[],
        help: "Time from a connection's accept to its upstream's answer",
        samples: |observed| vec![latencies(observed.look.tcp.connect_latency)],
    },
    Metric {
        name: "tproxy_sessions_begun",
        kind: MetricKind::Counter,
        unit: None,
        labels: &[],
        help: "UDP sessions begun",
        samples: |observed| vec![plain(observed.look.udp.sessions)],
    },
    Metric {
        name: "tproxy_sessions",
        kind: MetricKind::Gauge,
        unit: None,
        labels: &[],
        help: "UDP sessions that are live",
        samples: |observed| vec![plain(observed.look.udp.active())],
    },
    Metric {
        name: "tproxy_sessions_ended",
        kind: MetricKind::Counter,
        unit: None,
        labels: &["end"],
        help: "UDP sessions by how they ended",
        samples: |observed| {
            observed.look.udp.ends.iter().map(|(end, count)| labelled([end.name()], *count)).collect()
        },
    },
    Metric {
        name: "tproxy_datagrams",
        kind: MetricKind::Counter,
        unit: None,
        labels: &["direction"],
        help: "UDP datagrams: up is to upstreams, down is to clients",
        samples: |observed| both(observed.look.udp.datagrams_up, observed.look.udp.datagrams_down),
    },
    Metric {
        name: "tproxy_sessions",
        kind: MetricKind::Counter,
        unit: Some(Unit::Bytes),
        labels: &["direction"],
        help: "Bytes of UDP datagrams: up is to upstreams, down is to clients",
        samples: |observed| both(observed.look.udp.bytes_up, observed.look.udp.bytes_down),
    },
    Metric {
        name: "tproxy_errors",
        kind: MetricKind::Counter,
        unit: None,
        labels: &["protocol", "reason"],
        help: "What went wrong or had to be done in another way, besides the ends of connections and sessions",
        samples: errors,
    },
    Metric {
        name: "tproxy_packets",
        kind: MetricKind::Counter,
        unit: None,
        labels: &["verdict", "reason"],
        help: "Packets that the datapath saw, by what it decided, and why",
        samples: |observed| {
            let sample = |(reason, count): &(Reason, u64)| {
                let (verdict, why) = reason.name().split_once('_').unwrap_or((reason.name(), ""));
                labelled([verdict, why], *count)
            };
            observed.look.packets.iter().map(sample).collect()
        },
    },
    Metric {
        name: "tproxy_rule_hits",
        kind: MetricKind::Counter,
        unit: None,
        labels: &["rule"],
        help: "Flows that the datapath decided by each rule, rules that are no more included",
        samples: |observed| observed.look.hits.iter().map(|(rule, hits)| labelled([rule], *hits)).collect(),
    },
    Metric {
        name: "tproxy_rules",
        kind: MetricKind::Gauge,
        unit: None,
        labels: &[],
        help: "Rules in force",
        samples: |observed| vec![plain(observed.look.rules.len() as u64)],
    },
    Metric {
        name: "tproxy_upstream_failing",
        kind: MetricKind::Gauge,
        unit: None,
        labels: &["upstream", "server"],
        help: "1 for each server of an upstream that fails, otherwise 0",
        samples: |observed| {
            by_server(observed, |server| Some(f64::from(u8::from(server.health().failing.is_some()))))
        },
    },
    Metric {
        name: "tproxy_upstream_latency",
        kind: MetricKind::Gauge,
        unit: Some(Unit::Seconds),
        labels: &["upstream", "server"],
        help: "Time that a server of an upstream took of late until it stood for a destination",
        samples: |observed| by_server(observed, |server| Some(server.health().latency?.as_secs_f64())),
    },
    Metric {
        name: "tproxy_upstream_connections",
        kind: MetricKind::Gauge,
        unit: None,
        labels: &["upstream", "server"],
        help: "TCP connections that are live by each server of an upstream",
        samples: |observed| by_server(observed, |server| Some(server.live() as f64)),
    },
    Metric {
        name: "tproxy_upstream_connected",
        kind: MetricKind::Counter,
        unit: None,
        labels: &["upstream", "server"],
        help: "TCP connections that went by each server of an upstream",
        samples: |observed| by_server(observed, |server| Some(server.flows()[0] as f64)),
    },
    Metric {
        name: "tproxy_upstream_failed",
        kind: MetricKind::Counter,
        unit: None,
        labels: &["upstream", "server"],
        help: "TCP connections for which a server of an upstream failed; another may have taken them",
        samples: |observed| by_server(observed, |server| Some(server.flows()[1] as f64)),
    },
    Metric {
        name: "tproxy_reloads",
        kind: MetricKind::Counter,
        unit: None,
        labels: &["result"],
        help: "Reloads that were applied or refused, and those that were rolled back since nobody confirmed them",
        samples: |observed| {
            let Reloads { applied, refused, rolled_back } = observed.reloads;
            [("applied", applied), ("refused", refused), ("rolled_back", rolled_back)]
                .map(|(result, count)| labelled([result], count))
                .into()
        },
    },
    Metric {
        name: "tproxy_map_entries",
        kind: MetricKind::Gauge,
        unit: None,
        labels: &["map"],
        help: "Entries of the datapath's maps",
        samples: |observed| observed.maps.iter().map(|map| labelled([map.name], map.entries)).collect(),
    },
    Metric {
        name: "tproxy_map_capacity",
        kind: MetricKind::Gauge,
        unit: None,
        labels: &["map"],
        help: "Entries that the datapath's maps can hold",
        samples: |observed| observed.maps.iter().map(|map| labelled([map.name], map.capacity)).collect(),
    },
];

fn errors(observed: &Observed<'_>) -> Vec<MetricSample> {
    let (tcp, udp) = (&observed.look.tcp, &observed.look.udp);
    let counted = [
        ("tcp", "source_fallbacks", tcp.source_fallbacks),
        ("tcp", "decided_again", tcp.decided_again),
        ("tcp", "out_of_descriptors", tcp.out_of_descriptors),
        ("udp", "source_fallbacks", udp.source_fallbacks),
        ("udp", "reply_fallbacks", udp.reply_fallbacks),
        ("udp", "out_of_descriptors", udp.out_of_descriptors),
        ("udp", "no_upstream", udp.no_upstream),
        ("udp", "out_of_ports", udp.out_of_ports),
        ("udp", "unanswered", udp.unanswered),
        ("udp", "undecided", udp.undecided),
        ("udp", "loop", udp.to_ourselves),
        ("udp", "send_errors", udp.send_errors),
        ("udp", "icmp_suppressed", udp.icmp_suppressed),
    ];
    counted.into_iter().map(|(protocol, reason, count)| labelled([protocol, reason], count)).collect()
}

/// Of each server that has the value.
fn by_server(observed: &Observed<'_>, value: impl Fn(&Server) -> Option<f64>) -> Vec<MetricSample> {
    let servers = observed
        .look
        .upstreams
        .iter()
        .flat_map(|pool| pool.servers().iter().map(move |server| (pool, server)));
    let sample = |(pool, server): (&Arc<Pool>, &Arc<Server>)| {
        let labels = vec![pool.group().to_string(), server.url().to_string()];
        Some(MetricSample { labels, value: MetricValue::Number(value(server)?) })
    };
    servers.filter_map(sample).collect()
}

fn plain(count: u64) -> MetricSample {
    labelled([], count)
}

fn labelled<const N: usize>(labels: [&str; N], count: u64) -> MetricSample {
    MetricSample { labels: labels.map(str::to_owned).into(), value: MetricValue::Number(count as f64) }
}

fn both(up: u64, down: u64) -> Vec<MetricSample> {
    vec![labelled(["up"], up), labelled(["down"], down)]
}

fn latencies(latencies: Latencies) -> MetricSample {
    MetricSample { labels: vec![], value: MetricValue::Latencies(latencies) }
}

/// `docs/metrics.md`
#[must_use]
pub fn documentation() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         What `tproxy run --metrics ADDR:PORT` serves at `/metrics`, and the control socket too, in the OpenMetrics\n\
         format. A histogram has the suffixes `_bucket`, `_sum` and `_count`.\n\
         This page is made from `tproxy-user/cli/src/metrics/table.rs`; a test compares them.\n\n\
         | name | kind | labels | what it is |\n|---|---|---|---|\n",
    );
    for metric in METRICS {
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        writeln!(text, "| `{}` | {kind} | {} | {} |", metric.full_name(), labels.join(", "), metric.help)
            .expect("a string takes all");
    }
    text
}
