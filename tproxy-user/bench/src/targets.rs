//! Where we want to be, as ratios, and where we are.

use serde::Serialize;
use tproxy::config::Source;

use super::{
    contender::{Contender, Way},
    results::{ByRound, Results, Summary, join, summary},
    workload::{Better, Metric, Workload},
};

/// What is compared.
#[derive(Debug, Clone, Copy)]
enum Quantity {
    Measured(Metric),
    /// CPU time beyond that of plain forwarding.
    AddedCpu,
}

/// With what.
#[derive(Debug, Clone, Copy)]
enum Against {
    /// The better of HAProxy and nginx, with the same source.
    BetterPeer,
    /// Our relay behind iptables, with the same source.
    Iptables,
    Plain,
    /// The same with one rule.
    OneRule,
    /// Nothing: the number itself counts, in the unit of the sample.
    Itself,
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

struct Target(Workload, Quantity, Against, Bound);

use Against::{BetterPeer, Iptables, Itself, OneRule, Plain};
use Bound::{AtLeast, AtMost};
use Quantity::{AddedCpu, Measured};

const TARGETS: &[Target] = &[
    Target(Workload::Connections, Measured(Metric::Rate), BetterPeer, AtLeast(1.15)),
    Target(Workload::Connections, AddedCpu, BetterPeer, AtMost(0.75)),
    Target(Workload::Requests64, Measured(Metric::Rate), BetterPeer, AtLeast(1.1)),
    Target(Workload::Requests64, AddedCpu, BetterPeer, AtMost(0.8)),
    Target(Workload::Requests1000, Measured(Metric::Rate), BetterPeer, AtLeast(1.1)),
    Target(Workload::Requests1000, AddedCpu, BetterPeer, AtMost(0.8)),
    Target(Workload::Bulk1Up, Measured(Metric::Rate), BetterPeer, AtLeast(1.8)),
    Target(Workload::Bulk1Up, AddedCpu, BetterPeer, AtMost(0.35)),
    Target(Workload::Bulk1Down, Measured(Metric::Rate), BetterPeer, AtLeast(1.8)),
    Target(Workload::Bulk1Down, AddedCpu, BetterPeer, AtMost(0.35)),
    Target(Workload::Bulk8Up, Measured(Metric::Rate), BetterPeer, AtLeast(1.8)),
    Target(Workload::Bulk8Up, AddedCpu, BetterPeer, AtMost(0.35)),
    Target(Workload::Bulk8Down, Measured(Metric::Rate), BetterPeer, AtLeast(1.8)),
    Target(Workload::Bulk8Down, AddedCpu, BetterPeer, AtMost(0.35)),
    Target(Workload::PingPong, Measured(Metric::P50), BetterPeer, AtMost(0.95)),
    Target(Workload::PingPong, Measured(Metric::P99), BetterPeer, AtMost(0.95)),
    Target(Workload::Idle, Measured(Metric::Idle9000), Itself, AtMost(1_700.0)),
    Target(Workload::Connections, Measured(Metric::Rate), Iptables, AtLeast(1.03)),
    Target(Workload::Connections, AddedCpu, Iptables, AtMost(1.0)),
    Target(Workload::Rules1000, Measured(Metric::Rate), Iptables, AtLeast(2.0)),
    Target(Workload::Rules1000, AddedCpu, Iptables, AtMost(1.0)),
    Target(Workload::Syns4096, Measured(Metric::RunTime), OneRule, AtMost(1.5)),
    Target(Workload::SynsPrefixes, Measured(Metric::RunTime), OneRule, AtMost(1.5)),
    Target(Workload::PassedBulk, Measured(Metric::Rate), Plain, AtLeast(0.97)),
    Target(Workload::PassedPingPong, Measured(Metric::P50), Plain, AtMost(1.03)),
    Target(Workload::Program, Measured(Metric::RunTime), Itself, AtMost(60e-9)),
];

/// A target, and what a contender of ours reaches.
#[derive(Debug, Serialize)]
pub(super) struct Standing {
    pub(super) workload: Workload,
    pub(super) contender: Contender,
    /// What is compared with what.
    pub(super) what: String,
    /// The bound, as people read it.
    pub(super) target: String,
    #[serde(skip)]
    pub(super) reached: Summary,
    /// The median, as a ratio or in the unit of `target`.
    pub(super) median: f64,
    pub(super) met: bool,
}

/// All that the results have something to say about.
pub(super) fn standings(results: &Results) -> Vec<Standing> {
    let ours = [Way::SkLookup, Way::SkAssign]
        .into_iter()
        .flat_map(|way| [(way, Source::Host), (way, Source::Client)]);
    let ours: Vec<_> = ours.collect();
    TARGETS
        .iter()
        .flat_map(|target| ours.iter().filter_map(|(way, source)| stand(target, *way, *source, results)))
        .collect()
}

fn stand(target: &Target, way: Way, source: Source, results: &Results) -> Option<Standing> {
    let Target(workload, quantity, against, bound) = *target;
    let contender = Contender::Proxy(way, source);
    let at = |workload, contender| match quantity {
        Measured(metric) => results.by_round(workload, contender, metric),
        AddedCpu => results.added_cpu(workload, contender),
    };
    let of = |contender| at(workload, contender);
    let own = of(contender);
    let (reference, name) = match against {
        BetterPeer => {
            (best(Way::PEERS.map(|peer| of(Contender::Proxy(peer, source))), quantity), "better peer")
        }
        Iptables => (of(Contender::Proxy(Way::Iptables, source)), "iptables"),
        Plain => (of(Contender::Plain), "plain"),
        OneRule => (at(Workload::Syns1, contender), "one rule"),
        Itself => (own.keys().map(|round| (*round, 1.0)).collect(), ""),
    };
    let title = match quantity {
        Measured(metric) => metric.title(),
        AddedCpu => "added CPU",
    };
    let (unit, times) = match (against, quantity) {
        (Itself, Measured(metric)) => metric.unit(workload),
        _ => ("×".into(), 1.0),
    };
    let scaled = join(&own, &reference, |own, reference| own / reference * times);
    let reached = summary(&scaled)?;
    let (sign, limit, met) = match bound {
        AtLeast(limit) => ("≥", limit, reached.median >= limit * times),
        AtMost(limit) => ("≤", limit, reached.median <= limit * times),
    };
    Some(Standing {
        workload,
        contender,
        what: if name.is_empty() { title.into() } else { format!("{title} / {name}") },
        target: format!("{sign} {:.4} {unit}", limit * times).replace("00 ", " "),
        median: reached.median,
        reached,
        met,
    })
}

/// The better of two peers, in each round that both have.
fn best([a, b]: [ByRound; 2], quantity: Quantity) -> ByRound {
    let higher = matches!(quantity, Measured(metric) if metric.better() == Better::Higher);
    join(&a, &b, |a, b| if higher { a.max(b) } else { a.min(b) })
}
