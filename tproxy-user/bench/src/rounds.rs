//! The order of things.

use std::{thread, time::Duration};

use anyhow::ensure;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    args::Plan, contender::Contender, cpu::CpuTime, lane::Lane, results::Results, steering::Rules,
    workload::Workload,
};

/// Measures all that is planned. What fails is a warning in the results.
///
/// # Errors
/// When nothing at all could be measured.
pub(super) fn run(plan: &Plan) -> anyhow::Result<Results> {
    let style =
        ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed_precise} (left: {eta}) {wide_msg}")?;
    let mut rounds = Rounds {
        plan,
        results: Results::default(),
        progress: ProgressBar::new(steps(plan) as u64).with_style(style),
    };
    for round in 0..plan.pace.rounds {
        rounds.results.others.push(others()?);
        for stage in stages(plan, round) {
            rounds.measure(round, stage);
        }
    }
    rounds.progress.finish_and_clear();
    let mut results = rounds.results;
    ensure!(!results.samples.is_empty(), "nothing could be measured:\n{}", results.warnings.join("\n"));
    results.judge_noise();
    Ok(results)
}

struct Rounds<'a> {
    plan: &'a Plan,
    results: Results,
    progress: ProgressBar,
}

impl Rounds<'_> {
    fn measure(&mut self, round: usize, stage: Stage) {
        let workloads: Vec<_> =
            at(self.plan, round).filter(|workload| Stage::of(*workload) == stage).collect();
        let lanes = self.open_lanes(round, stage, &workloads);
        for workload in workloads {
            for lane in lanes.iter().filter(|lane| workload.concerns(lane.contender)) {
                let what = format!("round {}: {}, {}", round + 1, workload.name(), lane.contender);
                self.progress.set_message(what.clone());
                match workload.run(lane, self.plan.pace) {
                    Ok(sample) => self.results.add(round, workload, lane.contender, &sample),
                    Err(error) => self.results.warn(format!("{what}: not measured: {error:#}")),
                }
                self.progress.inc(1);
            }
        }
    }

    fn open_lanes(&mut self, round: usize, stage: Stage, workloads: &[Workload]) -> Vec<Lane> {
        let mut lanes = Vec::new();
        let concerned =
            |contender: &Contender| workloads.iter().any(|workload| workload.concerns(*contender));
        for contender in in_turn(self.plan, round).filter(concerned) {
            let what = format!("round {}: a network for {contender}", round + 1);
            self.progress.set_message(what.clone());
            match Lane::open(contender, stage.rules) {
                Ok(lane) => lanes.push(lane),
                Err(error) => self.results.warn(format!("{what}, {:?}: {error:#}", stage.rules)),
            }
        }
        lanes
    }
}

fn steps(plan: &Plan) -> usize {
    let of = |round| {
        at(plan, round).map(|workload| plan.contenders.iter().filter(|it| workload.concerns(**it)).count())
    };
    (0..plan.pace.rounds).flat_map(of).sum()
}

/// The workloads of a round.
fn at(plan: &Plan, round: usize) -> impl Iterator<Item = Workload> {
    plan.workloads.iter().copied().filter(move |workload| round == 0 || !workload.is_steady())
}

/// Workloads that are run on the same networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stage {
    rules: Rules,
    /// Memory is looked at in processes that have done nothing before.
    steady: bool,
}

impl Stage {
    fn of(workload: Workload) -> Self {
        Self { rules: workload.rules(), steady: workload.is_steady() }
    }
}

fn stages(plan: &Plan, round: usize) -> Vec<Stage> {
    let mut stages = Vec::new();
    for stage in at(plan, round).map(Stage::of) {
        if !stages.contains(&stage) {
            stages.push(stage);
        }
    }
    stages
}

/// Each round begins with another contender, so that a drift does not always meet the same.
fn in_turn(plan: &Plan, round: usize) -> impl Iterator<Item = Contender> {
    let number = plan.contenders.len();
    (0..number).map(move |index| plan.contenders[(index + round) % number])
}

/// How much of the machine is busy while we do nothing.
fn others() -> anyhow::Result<f64> {
    let before = CpuTime::now()?;
    thread::sleep(Duration::from_millis(500));
    let used = CpuTime::now()? - before;
    Ok(used.busy() / (used.busy() + used.idle))
}
