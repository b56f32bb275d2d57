//! All that was measured.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    contender::Contender,
    stats::{median, spread, variation},
    workload::{Metric, Sample, Workload},
};

/// Plain forwarding that varies by more than this part of its median leaves little to say about the others.
const STEADY: f64 = 0.2;
/// So much of the machine may be used by others.
const QUIET: f64 = 0.03;

/// Samples and warnings.
#[derive(Debug, Default)]
pub(super) struct Results {
    pub(super) samples: Vec<Measured>,
    pub(super) warnings: Vec<String>,
    /// How busy the machine was before each round, 0 to 1.
    pub(super) others: Vec<f64>,
}

/// One number, in seconds, bytes and units of work.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Measured {
    pub(super) round: usize,
    pub(super) workload: Workload,
    pub(super) contender: Contender,
    pub(super) metric: Metric,
    pub(super) value: f64,
}

/// What the rounds say together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Summary {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

impl Summary {
    fn of(values: &[f64]) -> Option<Self> {
        let (least, most) = spread(values)?;
        Some(Self { median: median(values)?, least, most })
    }
}

/// Values by round.
pub(super) type ByRound = BTreeMap<usize, f64>;

impl Results {
    pub(super) fn add(&mut self, round: usize, workload: Workload, contender: Contender, sample: &Sample) {
        let measured = |(metric, value): &(Metric, f64)| Measured {
            round,
            workload,
            contender,
            metric: *metric,
            value: *value,
        };
        self.samples.extend(sample.0.iter().map(measured));
    }

    pub(super) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    pub(super) fn by_round(&self, workload: Workload, contender: Contender, metric: Metric) -> ByRound {
        let wanted = |it: &&Measured| (it.workload, it.contender, it.metric) == (workload, contender, metric);
        self.samples.iter().filter(wanted).map(|it| (it.round, it.value)).collect()
    }

    pub(super) fn summary(
        &self,
        workload: Workload,
        contender: Contender,
        metric: Metric,
    ) -> Option<Summary> {
        Summary::of(&values(&self.by_round(workload, contender, metric)))
    }

    /// To plain forwarding of the same round.
    pub(super) fn ratio_to_plain(
        &self,
        workload: Workload,
        contender: Contender,
        metric: Metric,
    ) -> Option<Summary> {
        let plain = self.by_round(workload, Contender::Plain, metric);
        Summary::of(&values(&join(&self.by_round(workload, contender, metric), &plain, |own, plain| {
            own / plain
        })))
    }

    /// CPU time beyond that of plain forwarding of the same round.
    pub(super) fn added_cpu(&self, workload: Workload, contender: Contender) -> ByRound {
        let plain = self.by_round(workload, Contender::Plain, Metric::Cpu);
        join(&self.by_round(workload, contender, Metric::Cpu), &plain, |own, plain| own - plain)
    }

    /// What was measured of a workload, in the order of the metrics.
    pub(super) fn metrics(&self, workload: Workload) -> Vec<Metric> {
        let mut metrics: Vec<_> =
            self.samples.iter().filter(|it| it.workload == workload).map(|it| it.metric).collect();
        metrics.sort_unstable();
        metrics.dedup();
        metrics
    }

    pub(super) fn contenders(&self, workload: Workload) -> Vec<Contender> {
        let has = |contender: &Contender| {
            self.samples.iter().any(|it| it.workload == workload && it.contender == *contender)
        };
        Contender::all().filter(has).collect()
    }

    pub(super) fn workloads(&self) -> Vec<Workload> {
        let mut workloads: Vec<_> = self.samples.iter().map(|it| it.workload).collect();
        workloads.sort_unstable();
        workloads.dedup();
        workloads
    }

    /// Warns where the machine was too restless to say much.
    pub(super) fn judge_noise(&mut self) {
        let busiest = self.others.iter().copied().fold(0.0, f64::max);
        if busiest > QUIET {
            self.warn(format!(
                "the machine was not ours alone: others used up to {:.0} % of it before a round, and what they use \
                 while we measure is counted as CPU time",
                busiest * 100.0
            ));
        }
        for workload in self.workloads() {
            let metric =
                if self.metrics(workload).contains(&Metric::Rate) { Metric::Rate } else { Metric::P50 };
            let plain = values(&self.by_round(workload, Contender::Plain, metric));
            if let Some(part) = variation(&plain).filter(|part| *part > STEADY) {
                self.warn(format!(
                    "{}: plain forwarding varied by {:.0} % between the rounds; trust the ratios little",
                    workload.name(),
                    part * 100.0
                ));
            }
        }
    }
}

/// Rounds that both have.
pub(super) fn join(a: &ByRound, b: &ByRound, with: impl Fn(f64, f64) -> f64) -> ByRound {
    a.iter().filter_map(|(round, a)| Some((*round, with(*a, *b.get(round)?)))).collect()
}

pub(super) fn values(by_round: &ByRound) -> Vec<f64> {
    by_round.values().copied().collect()
}

pub(super) fn summary(by_round: &ByRound) -> Option<Summary> {
    Summary::of(&values(by_round))
}
