//! Bars with their spread, as SVG.

use std::fmt::Write as _;

use super::{html::escape, number};
use crate::{
    results::Results,
    workload::{Better, Metric, Workload},
};

const LABEL: f64 = 130.0;
const WIDTH: f64 = 470.0;
const NUMBER: f64 = 80.0;
const BAR: f64 = 16.0;
const STEP: f64 = 22.0;

/// A bar for each contender: its median, and a line from its smallest to its largest sample.
pub(super) fn bars(results: &Results, workload: Workload, metric: Metric) -> String {
    let (unit, times) = metric.unit(workload);
    let contenders = results.contenders(workload).into_iter();
    let bars: Vec<_> = contenders
        .filter_map(|contender| Some((contender, results.summary(workload, contender, metric)?)))
        .collect();
    let most = bars.iter().map(|(_, summary)| summary.most).fold(0.0, f64::max);
    let scale = if most > 0.0 { WIDTH / most } else { 0.0 };
    let height = STEP * bars.len() as f64;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {} {height}\" role=\"img\" aria-label=\"{}\">\n",
        LABEL + WIDTH + NUMBER,
        escape(&format!("{}, {}", workload.name(), metric.title()))
    );
    for (index, (contender, summary)) in bars.iter().enumerate() {
        let top = STEP * index as f64 + (STEP - BAR) / 2.0;
        let middle = top + BAR / 2.0;
        let class = contender.to_string();
        let class = class.split('/').next().unwrap_or_default();
        let x = |value: f64| LABEL + value * scale;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{middle:.1}\" class=\"label\">{contender}</text>\
             <rect x=\"{LABEL}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{BAR}\" class=\"{class}\"/>\
             <path d=\"M{:.1} {middle:.1}H{:.1}\" class=\"spread\"/>\
             <text x=\"{:.1}\" y=\"{middle:.1}\">{}</text>",
            LABEL - 8.0,
            summary.median * scale,
            x(summary.least),
            x(summary.most),
            x(summary.most) + 6.0,
            number(summary.median * times),
        );
    }
    let better = match metric.better() {
        Better::Higher => "more is better",
        Better::Lower => "less is better",
    };
    format!("<figure><figcaption>{} ({unit}), {better}</figcaption>\n{svg}</svg></figure>\n", metric.title())
}
