use std::{collections::BTreeSet, fs, path::Path};

use tproxy::datapath::MapUse;

use super::*;
use crate::example;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn scraped() -> String {
    let maps = [MapUse { name: "DECISIONS", entries: 3, capacity: 65_536 }];
    let reloads = Reloads { applied: 3, refused: 1, rolled_back: 1 };
    encode(&Observed { look: &example::look(), reloads, maps: &maps, uptime: Duration::from_millis(1500) })
}

#[test]
fn every_metric_is_scraped_with_its_kind_unit_and_labels() {
    let text = scraped();
    for metric in METRICS {
        let family = metric.full_name();
        let family = family.strip_suffix("_total").unwrap_or(&family);
        let kind = format!("{:?}", metric.kind).to_lowercase();
        assert!(text.contains(&format!("# HELP {family} {}\n", metric.help)), "{family}\n{text}");
        assert!(text.contains(&format!("# TYPE {family} {kind}\n")), "{family}\n{text}");
        if let Some(unit) = metric.unit {
            let unit = format!("{unit:?}").to_lowercase();
            assert!(text.contains(&format!("# UNIT {family} {unit}\n")), "{family}\n{text}");
        }
        let sample = match metric.kind {
            MetricKind::Histogram => format!("{family}_bucket"),
            MetricKind::Counter | MetricKind::Gauge => metric.full_name(),
        };
        let is_sample = |line: &str| {
            let Some(rest) = line.strip_prefix(&*sample) else { return false };
            rest.starts_with([' ', '{'])
                && metric.labels.iter().all(|label| rest.contains(&format!("{label}=\"")))
        };
        assert!(text.lines().any(is_sample), "no sample of {sample}\n{text}");
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[test]
fn a_scrape_has_the_numbers() {
    let text = scraped();
    for line in [
        "tproxy_uptime_seconds 1.5",
        "tproxy_connections_accepted_total 7.0",
        "tproxy_connections 4.0",
        "tproxy_connections_ended_total{end=\"connect_refused\"} 2.0",
        "tproxy_connections_bytes_total{direction=\"down\"} 1000.0",
        "tproxy_accept_latency_seconds_bucket{le=\"0.001\"} 2",
        "tproxy_accept_latency_seconds_bucket{le=\"+Inf\"} 3",
        "tproxy_accept_latency_seconds_count 3",
        "tproxy_packets_total{verdict=\"reject\",reason=\"rule\"} 5.0",
        "tproxy_rule_hits_total{rule=\"say \\\"no\\\"\"} 5.0",
        "tproxy_reloads_total{result=\"applied\"} 3.0",
        "tproxy_map_entries{map=\"DECISIONS\"} 3.0",
    ] {
        assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    }
}

#[test]
fn no_name_is_used_twice() {
    let names: BTreeSet<_> = METRICS.iter().map(Metric::full_name).collect();
    assert_eq!(names.len(), METRICS.len());
    assert!(names.iter().all(|name| name.starts_with("tproxy_")));
}

#[test]
fn the_page_in_the_documentation_is_current() {
    let committed = fs::read_to_string(root().join("docs/metrics.md")).unwrap_or_default();
    assert_eq!(committed, documentation(), "make it anew: cargo run -- metrics --list > docs/metrics.md");
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let text = fs::read_to_string(root().join("deploy/grafana/tproxy.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut known = BTreeSet::new();
    for metric in METRICS {
        match metric.kind {
            MetricKind::Histogram => {
                known.extend(["_bucket", "_sum", "_count"].map(|it| metric.full_name() + it))
            }
            MetricKind::Counter | MetricKind::Gauge => drop(known.insert(metric.full_name())),
        }
    }
    let mut asked = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let names: Vec<_> = words.filter(|word| word.starts_with("tproxy_")).map(str::to_owned).collect();
            assert!(!names.is_empty(), "{expression}");
            asked.extend(names);
        }
    }
    let unknown: Vec<_> = asked.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let families = |names: &BTreeSet<String>| {
        names.iter().map(|name| name.trim_end_matches("_bucket").to_owned()).collect::<BTreeSet<_>>()
    };
    let unused: Vec<_> =
        METRICS.iter().map(Metric::full_name).filter(|name| !families(&asked).contains(name)).collect();
    assert!(unused.is_empty(), "the dashboard shows everything but {unused:?}");
}
