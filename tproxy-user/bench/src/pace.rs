//! How long and how often.

use std::time::Duration;

use clap::ValueEnum as _;
use tproxy::config::Source;

use super::{
    contender::{Contender, Way},
    workload::Workload,
};

/// Durations and repetitions of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) name: &'static str,
    pub(super) rounds: usize,
    /// Of workloads with our own load generator.
    pub(super) span: Duration,
    /// Of the same before anything is measured.
    pub(super) warm_up: Duration,
    /// Of wrk and iperf3, which count in whole seconds.
    pub(super) seconds: u32,
}

impl Pace {
    pub(super) const FULL: Self = Self {
        name: "full",
        rounds: 5,
        span: Duration::from_secs(2),
        warm_up: Duration::from_millis(500),
        seconds: 2,
    };
    pub(super) const QUICK: Self = Self {
        name: "quick",
        rounds: 3,
        span: Duration::from_millis(500),
        warm_up: Duration::from_millis(150),
        seconds: 1,
    };

    pub(super) fn is_quick(self) -> bool {
        self.name == Self::QUICK.name
    }

    /// What is measured unless somebody asks for something else.
    pub(super) fn workloads(self) -> Vec<Workload> {
        let left_out = [
            Workload::Bulk1Up,
            Workload::Bulk8Down,
            Workload::PassedConnections,
            Workload::Udp64,
            Workload::Udp1200Singly,
            Workload::Rules64,
            Workload::Rules4096,
            Workload::Syns1,
            Workload::Syns64,
            Workload::Syns512,
            Workload::Syns4096,
            Workload::SynsPrefixes,
        ];
        let all = Workload::value_variants().iter().copied();
        all.filter(|workload| !(self.is_quick() && left_out.contains(workload))).collect()
    }

    /// Who is measured unless somebody asks for somebody else.
    pub(super) fn contenders(self) -> Vec<Contender> {
        let left_out = |contender: &Contender| {
            matches!(
                contender,
                Contender::Proxy(Way::Iptables | Way::Nft | Way::SkAssign | Way::Singly, Source::Client)
            )
        };
        Contender::all().filter(|contender| !(self.is_quick() && left_out(contender))).collect()
    }
}
