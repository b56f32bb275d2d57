//! One page that needs nothing beside it.

use std::fmt::Write as _;

use super::{Report, plot, table};
use crate::contender::Contender;

const STYLE: &str = include_str!("style.css");
const METHOD: &str = include_str!("method.html");

pub(super) fn page(report: &Report) -> String {
    let Report { environment, results, standings } = report;
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>tproxy bench</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\"><style>\n{STYLE}</style></head><body>\n\
         <h1>What interception costs</h1>\n<p>{}</p>\n",
        escape(&report.setting())
    );
    for warning in &results.warnings {
        let _ = writeln!(page, "<p class=\"warning\">{}</p>", escape(warning));
    }
    page += METHOD;
    page += "<h2>Contenders</h2>\n<dl>\n";
    for contender in Contender::all() {
        let _ = writeln!(page, "<dt>{contender}</dt><dd>{}</dd>", escape(&contender.explanation()));
    }
    page += "</dl>\n<h2>Versions</h2>\n<dl>\n";
    for (tool, version) in &environment.tools {
        let _ = writeln!(page, "<dt>{tool}</dt><dd>{}</dd>", escape(version));
    }
    page += "</dl>\n";
    if !standings.is_empty() {
        page += "<h2>Targets</h2>\n<p>Medians of the ratios of each round; peers with the same source.</p>\n";
        page += &table::of_standings(standings).html();
    }
    for workload in results.workloads() {
        let _ = writeln!(page, "<h2>{}</h2>\n<p>{}.</p>", workload.name(), escape(&workload.explanation()));
        for metric in results.metrics(workload).into_iter().filter(|metric| !metric.is_part()) {
            page += &plot::bars(results, workload, metric);
        }
        page += &table::of_workload(results, workload).html();
        let _ = writeln!(page, "<pre>{}</pre>", escape(&report.command(workload)));
    }
    page + "</body></html>\n"
}

/// Text as HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
