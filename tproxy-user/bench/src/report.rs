//! The results, for people and for programs.

mod html;
mod plot;
mod table;

use serde::Serialize;

use super::{
    environment::Environment,
    results::{Measured, Results},
    targets::{Standing, standings},
    workload::Workload,
};

/// All that is known at the end.
pub(super) struct Report {
    environment: Environment,
    results: Results,
    standings: Vec<Standing>,
}

/// What `--json` writes: every sample, in seconds, bytes and units of work.
#[derive(Serialize)]
struct Json<'a> {
    environment: &'a Environment,
    warnings: &'a [String],
    busy_before_rounds: &'a [f64],
    targets: &'a [Standing],
    samples: &'a [Measured],
}

impl Report {
    pub(super) fn new(environment: Environment, results: Results) -> Self {
        let standings = standings(&results);
        Self { environment, results, standings }
    }

    pub(super) fn json(&self) -> String {
        let json = Json {
            environment: &self.environment,
            warnings: &self.results.warnings,
            busy_before_rounds: &self.results.others,
            targets: &self.standings,
            samples: &self.results.samples,
        };
        serde_json::to_string_pretty(&json).unwrap_or_else(|error| unreachable!("numbers and texts: {error}"))
    }

    /// Tables for a terminal.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for workload in self.results.workloads() {
            text += &format!("\n{}: {}\n", workload.name(), workload.explanation());
            text += &table::of_workload(&self.results, workload).text();
            text += &format!("  {}\n", self.command(workload));
        }
        if !self.standings.is_empty() {
            text += "\ntargets (median of the ratios of each round)\n";
            text += &table::of_standings(&self.standings).text();
        }
        text += &format!("\n{}\n", self.setting());
        for warning in &self.results.warnings {
            text += &format!("warning: {warning}\n");
        }
        text
    }

    pub(super) fn html(&self) -> String {
        html::page(self)
    }

    /// What measures one workload again.
    fn command(&self, workload: Workload) -> String {
        let quick = if self.environment.quick { " --quick" } else { "" };
        let rounds = self.environment.rounds;
        let command = format!("tproxy bench{quick} --rounds {rounds} --workload {}", workload.name());
        if self.environment.only.is_empty() {
            command
        } else {
            format!("{command} --only {}", self.environment.only)
        }
    }

    /// Where and how, in a sentence or two.
    fn setting(&self) -> String {
        let Environment { kernel, cpu, cpus, tproxy, build, rounds, quick, .. } = &self.environment;
        let kind = if *quick { "quick run, a first impression only; " } else { "" };
        format!(
            "{kind}{rounds} interleaved rounds, medians; tproxy {tproxy} ({build}), {kernel}, {cpus} CPUs ({cpu})"
        )
    }
}

/// Three digits that count, thousands in groups.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    let plain = format!("{value:.digits$}");
    let (whole, fraction) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{fraction}")
}

#[cfg(test)]
mod tests;
