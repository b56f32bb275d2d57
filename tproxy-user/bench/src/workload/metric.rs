//! What is said in numbers.

use serde::Serialize;

use super::Workload;

/// One number of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Units of work a second; GB are counted as bits.
    Rate,
    /// CPU time of the whole machine for a unit of work.
    Cpu,
    CpuUser,
    CpuSystem,
    /// Interrupts included.
    CpuSoftirq,
    /// Median round trip.
    P50,
    P99,
    P999,
    /// Memory for each of a thousand connections.
    Idle1000,
    Idle5000,
    Idle9000,
    /// One run of a program.
    RunTime,
}

/// Which of two numbers is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// What one run of a workload gave, in seconds, bytes and units of work.
#[derive(Debug, Clone)]
pub(crate) struct Sample(pub(crate) Vec<(Metric, f64)>);

impl Metric {
    pub(crate) const fn better(self) -> Better {
        match self {
            Self::Rate => Better::Higher,
            _ => Better::Lower,
        }
    }

    /// Its heading.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Cpu => "CPU",
            Self::CpuUser => "CPU user",
            Self::CpuSystem => "CPU system",
            Self::CpuSoftirq => "CPU softirq",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::Idle1000 => "at 1,000",
            Self::Idle5000 => "at 5,000",
            Self::Idle9000 => "at 9,000",
            Self::RunTime => "mean run",
        }
    }

    /// The unit in which people read it, and how many of them make one of the sample's.
    pub(crate) fn unit(self, workload: Workload) -> (String, f64) {
        let (work, time, times) = workload.work();
        match self {
            Self::Rate if work == "GB" => (workload.rate_unit(), 8.0),
            Self::Rate => (workload.rate_unit(), 1.0),
            Self::Cpu | Self::CpuUser | Self::CpuSystem | Self::CpuSoftirq => {
                (format!("{time}/{work}"), times)
            }
            Self::P50 | Self::P99 | Self::P999 => ("µs".into(), 1e6),
            Self::Idle1000 | Self::Idle5000 | Self::Idle9000 => ("kB/connection".into(), 1e-3),
            Self::RunTime => ("ns".into(), 1e9),
        }
    }

    /// The parts of [`Metric::Cpu`], which tables show beside it and plots leave out.
    pub(crate) const fn is_part(self) -> bool {
        matches!(self, Self::CpuUser | Self::CpuSystem | Self::CpuSoftirq)
    }
}
