//! Rows and columns.

use comfy_table::{CellAlignment, Table as Terminal, presets::NOTHING};

use super::number;
use crate::{
    results::{Results, Summary, summary},
    targets::Standing,
    workload::{Metric, Workload},
};

/// A heading and rows; the first columns are texts, the others numbers.
pub(super) struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
    texts: usize,
}

/// A row for each contender, and for each metric its median, its spread and its ratio to plain forwarding.
pub(super) fn of_workload(results: &Results, workload: Workload) -> Table {
    let metrics: Vec<_> = results.metrics(workload).into_iter().filter(|metric| !metric.is_part()).collect();
    let mut heading = vec!["contender".to_owned()];
    for metric in &metrics {
        let (unit, _) = metric.unit(workload);
        match metric {
            Metric::Cpu => {
                heading.extend([format!("CPU {unit}"), "user + system + softirq".into(), "added CPU".into()])
            }
            Metric::Idle1000 | Metric::Idle5000 | Metric::Idle9000 => {
                heading.push(format!("{unit} {}", metric.title()))
            }
            _ => heading.extend([format!("{} {unit}", metric.title()), "min–max".into(), "× plain".into()]),
        }
    }
    let row = |contender| {
        let mut row = vec![format!("{contender}")];
        for metric in &metrics {
            let (_, times) = metric.unit(workload);
            let own = results.summary(workload, contender, *metric);
            let median = |summary: Option<Summary>, times: f64| {
                summary.map_or(String::new(), |it| number(it.median * times))
            };
            row.push(median(own, times));
            match metric {
                Metric::Cpu => {
                    let part = |part| median(results.summary(workload, contender, part), times);
                    let parts = [Metric::CpuUser, Metric::CpuSystem, Metric::CpuSoftirq].map(part);
                    row.push(parts.join(" + "));
                    row.push(median(summary(&results.added_cpu(workload, contender)), times));
                }
                Metric::Idle1000 | Metric::Idle5000 | Metric::Idle9000 => {}
                _ => {
                    row.push(own.map_or(String::new(), |it| spread(it, times)));
                    row.push(median(results.ratio_to_plain(workload, contender, *metric), 1.0));
                }
            }
        }
        row
    };
    Table { heading, rows: results.contenders(workload).into_iter().map(row).collect(), texts: 1 }
}

/// A row for each target and each contender of ours.
pub(super) fn of_standings(standings: &[Standing]) -> Table {
    let heading =
        ["workload", "contender", "what", "target", "reached", "min–max", ""].map(str::to_owned).to_vec();
    let row = |it: &Standing| {
        vec![
            it.workload.name(),
            it.contender.to_string(),
            it.what.clone(),
            it.target.clone(),
            number(it.median),
            spread(it.reached, 1.0),
            if it.met { "met" } else { "missed" }.into(),
        ]
    };
    Table { heading, rows: standings.iter().map(row).collect(), texts: 3 }
}

fn spread(summary: Summary, times: f64) -> String {
    format!("{}–{}", number(summary.least * times), number(summary.most * times))
}

impl Table {
    pub(super) fn text(&self) -> String {
        let mut table = Terminal::new();
        table.load_preset(NOTHING).set_header(&self.heading).add_rows(&self.rows);
        for column in table.column_iter_mut().skip(self.texts) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let trimmed: Vec<_> = table.lines().map(|line| format!(" {}\n", line.trim_end())).collect();
        trimmed.concat()
    }

    pub(super) fn html(&self) -> String {
        let row = |tag: &str, cells: &[String]| {
            let cells: String =
                cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", super::html::escape(cell))).collect();
            format!("<tr>{cells}</tr>\n")
        };
        let rows: String = self.rows.iter().map(|cells| row("td", cells)).collect();
        format!("<table class=\"texts-{}\">\n{}{rows}</table>\n", self.texts, row("th", &self.heading))
    }
}
