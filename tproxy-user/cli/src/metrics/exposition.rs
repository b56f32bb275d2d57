//! The text of a scrape.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit as ClientUnit},
};
use tproxy::latency::{BOUNDS, Latencies};

use super::{METRICS, Metric, MetricKind, MetricSample, MetricValue, Observed, Unit};

/// Of the answer.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The answer to a scrape.
#[must_use]
pub fn encode(observed: &Observed<'_>) -> String {
    let mut registry = Registry::default();
    let families = METRICS.iter().map(|metric| (metric, (metric.samples)(observed))).collect();
    registry.register_collector(Box::new(Families(families)));
    let mut answer = String::new();
    text::encode(&mut answer, &registry).expect("a string takes all");
    answer
}

struct Families(Vec<(&'static Metric, Vec<MetricSample>)>);

impl fmt::Debug for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(metric, _)| metric.name)).finish()
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (metric, samples) in &self.0 {
            let (kind, unit) = (kind(metric.kind), metric.unit.map(unit));
            let mut family = encoder.encode_descriptor(metric.name, metric.help, unit.as_ref(), kind)?;
            for sample in samples {
                let labels: Vec<_> =
                    metric.labels.iter().copied().zip(sample.labels.iter().map(|v| &**v)).collect();
                if labels.is_empty() {
                    number(&mut family, metric.kind, &sample.value)?;
                } else {
                    number(&mut family.encode_family(&labels)?, metric.kind, &sample.value)?;
                }
            }
        }
        Ok(())
    }
}

fn number(encoder: &mut MetricEncoder<'_>, kind: MetricKind, value: &MetricValue) -> fmt::Result {
    match (value, kind) {
        (MetricValue::Latencies(latencies), _) => histogram(encoder, latencies),
        (MetricValue::Number(number), MetricKind::Counter) => {
            encoder.encode_counter::<NoLabelSet, _, f64>(number, None)
        }
        (MetricValue::Number(number), _) => encoder.encode_gauge(number),
    }
}

fn histogram(encoder: &mut MetricEncoder<'_>, latencies: &Latencies) -> fmt::Result {
    let bounds = BOUNDS.iter().map(|bound| *bound as f64 / 1e6).chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(latencies.buckets).collect();
    let sum = latencies.nanoseconds as f64 / 1e9;
    encoder.encode_histogram::<NoLabelSet>(sum, latencies.count(), &buckets, None)
}

const fn kind(kind: MetricKind) -> MetricType {
    match kind {
        MetricKind::Counter => MetricType::Counter,
        MetricKind::Gauge => MetricType::Gauge,
        MetricKind::Histogram => MetricType::Histogram,
    }
}

const fn unit(unit: Unit) -> ClientUnit {
    match unit {
        Unit::Bytes => ClientUnit::Bytes,
        Unit::Seconds => ClientUnit::Seconds,
    }
}
