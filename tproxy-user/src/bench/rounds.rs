//! The order of things.

use std::{thread, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

use super::{
    args::Plan, contender::Contender, cpu::CpuTime, lane::Lane, results::Results, steering::Rules,
    workload::Workload,
};

/// Measures all that is planned. What fails is a warning in the results.
///
/// # Errors
/// When even `/proc/stat` cannot be read.
pub(super) fn run(plan: &Plan) -> anyhow::Result<Results> {
    let mut results = Results::default();
    let progress = ProgressBar::new(steps(plan) as u64).with_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len} {elapsed_precise} (left: {eta}) {wide_msg}",
    )?);
    for round in 0..plan.pace.rounds {
        progress.set_message("what others do on this machine");
        results.others.push(others()?);
        for stage in stages(plan, round) {
            let workloads = || at(plan, round).filter(|workload| Stage::of(*workload) == stage);
            let mut lanes = Vec::new();
            for contender in in_turn(plan, round) {
                if !workloads().any(|workload| workload.concerns(contender)) {
                    continue;
                }
                progress.set_message(format!("round {}: a network for {contender}", round + 1));
                match Lane::open(contender, stage.rules) {
                    Ok(lane) => lanes.push(lane),
                    Err(error) => results.warn(format!("{contender}, {:?}: {error:#}", stage.rules)),
                }
            }
            for workload in workloads() {
                for lane in lanes.iter().filter(|lane| workload.concerns(lane.contender)) {
                    let contender = lane.contender;
                    progress.set_message(format!("round {}: {}, {contender}", round + 1, workload.name()));
                    match workload.run(lane, plan.pace) {
                        Ok(sample) => results.add(round, workload, contender, &sample),
                        Err(error) => results.warn(format!(
                            "{}, {contender}, round {}: not measured: {error:#}",
                            workload.name(),
                            round + 1
                        )),
                    }
                    progress.inc(1);
                }
            }
        }
    }
    progress.finish_and_clear();
    results.judge_noise();
    Ok(results)
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
