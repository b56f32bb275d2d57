//! What Prometheus is told, in the OpenMetrics format. [`METRICS`] is the one list of what there is: the answer to a
//! scrape, `docs/metrics.md` and the check of the dashboard are made of it.

mod exposition;
mod table;

use std::time::Duration;

pub use exposition::{CONTENT_TYPE, encode};
pub use table::{METRICS, documentation};

use tproxy::{datapath::MapUse, instance::Look, latency::Latencies};

use crate::run::Reloads;

/// What the metrics are taken from.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// How the instance is.
    pub look: &'a Look,
    /// What came of the reloads.
    pub reloads: Reloads,
    /// How full the datapath's maps are.
    pub maps: &'a [MapUse],
    /// Since it was ready.
    pub uptime: Duration,
}

/// A metric family.
pub struct Metric {
    /// Without the unit, and without the suffix of counters.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: MetricKind,
    /// What it is measured in, where it is not a plain number.
    pub unit: Option<Unit>,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it is, as one sentence.
    pub help: &'static str,
    samples: fn(&Observed<'_>) -> Vec<MetricSample>,
}

/// What kind of number a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// It only grows, until the process ends.
    Counter,
    /// It comes and goes.
    Gauge,
    /// Numbers by their size.
    Histogram,
}

/// What a metric is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

/// A value of each label, and the number.
struct MetricSample {
    labels: Vec<String>,
    value: MetricValue,
}

enum MetricValue {
    Number(f64),
    Latencies(Latencies),
}

impl Metric {
    /// As Prometheus stores it, but for what it appends to histograms.
    #[must_use]
    pub fn full_name(&self) -> String {
        let unit = match self.unit {
            Some(Unit::Bytes) => "_bytes",
            Some(Unit::Seconds) => "_seconds",
            None => "",
        };
        let suffix = if self.kind == MetricKind::Counter { "_total" } else { "" };
        format!("{}{unit}{suffix}", self.name)
    }
}

#[cfg(test)]
mod tests;
