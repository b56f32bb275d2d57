//! Answers as text.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::NOTHING};
use tproxy::flows::ShownFlow;

use super::{age, bytes};
use crate::control::{Counts, FlowEvent, ShownRule, ShownUpstream, Status};

pub(super) fn status(status: &Status) -> String {
    let hooks: Vec<_> =
        status.hooks.iter().map(|hook| format!("{} {}", hook.interface, hook.direction)).collect();
    let mut lines = vec![
        ("name", status.name.to_string()),
        ("state", format!("{}, for {}", status.state.name(), age(status.uptime_seconds))),
        ("version", status.version.clone()),
        ("process", status.pid.to_string()),
        ("mark", status.mark.clone()),
        ("table", status.table.to_string()),
        ("workers", status.workers.to_string()),
        ("rules", format!("{}, generation {}", status.rules, status.generation)),
        ("missing", if status.missing.is_empty() { "nothing".into() } else { status.missing.join("; ") }),
        ("lost", if status.lost.is_empty() { "nothing".into() } else { status.lost.join("; ") }),
        ("hooks", if hooks.is_empty() { "none".into() } else { hooks.join(", ") }),
        ("live", format!("{} connections, {} sessions", status.live.connections, status.live.sessions)),
        ("connections", counts(&status.connections)),
        ("datagrams", counts(&status.datagrams)),
        ("packets", counts(&status.packets)),
    ];
    lines.extend(status.metrics.map(|address| ("metrics", format!("http://{address}/metrics"))));
    let mut text = String::new();
    for (what, how) in lines {
        writeln!(text, "{what:<12} {how}").expect("a string takes all");
    }
    text
}

fn counts(counts: &Counts) -> String {
    let words: Vec<_> = counts.iter().map(|(name, count)| format!("{name}={count}")).collect();
    if words.is_empty() { "none".into() } else { words.join(" ") }
}

pub(super) fn rules(rules: &[ShownRule]) -> String {
    let mut table = table(&["RULE", "SCOPE", "PROTOCOLS", "ACTION", "HITS", "LIVE"], &[4, 5]);
    for rule in rules {
        let protocols: Vec<_> = rule.protocols.iter().map(|protocol| protocol.name()).collect();
        table.add_row([
            rule.name.clone(),
            rule.scope.name().to_owned(),
            protocols.join(","),
            rule.action.clone(),
            rule.hits.to_string(),
            rule.live.to_string(),
        ]);
    }
    lines(&table)
}

pub(super) fn upstreams(upstreams: &[ShownUpstream]) -> String {
    let head = ["UPSTREAM", "SERVER", "STATE", "LATENCY", "LIVE", "CONNECTED", "FAILED", "ERROR"];
    let mut table = table(&head, &[3, 4, 5, 6]);
    for upstream in upstreams {
        for server in &upstream.servers {
            let latency = server.latency_seconds.map(|seconds| format!("{:.1} ms", 1e3 * seconds));
            table.add_row([
                upstream.upstream.clone(),
                server.url.clone(),
                server.state.name().to_owned(),
                latency.unwrap_or_else(|| "-".to_owned()),
                server.live.to_string(),
                server.connected.to_string(),
                server.failed.to_string(),
                server.error.clone().unwrap_or_default(),
            ]);
        }
    }
    lines(&table)
}

pub(super) fn flows(flows: &[ShownFlow]) -> String {
    let head = [
        "ID",
        "PROTO",
        "SCOPE",
        "RULE",
        "CLIENT",
        "ORIGINAL DESTINATION",
        "UPSTREAM",
        "UP",
        "DOWN",
        "AGE",
        "STATE",
    ];
    let mut table = table(&head, &[0, 7, 8, 9]);
    for flow in flows {
        table.add_row([
            flow.id.to_string(),
            flow.protocol.name().to_owned(),
            flow.scope.name().to_owned(),
            flow.rule.clone(),
            flow.client.to_string(),
            flow.original_destination.to_string(),
            flow.upstream.map_or_else(|| "-".to_owned(), |upstream| upstream.to_string()),
            bytes(flow.bytes_up),
            bytes(flow.bytes_down),
            age(flow.age_seconds),
            flow.state.name().to_owned(),
        ]);
    }
    lines(&table)
}

pub(super) fn event(event: &FlowEvent) -> String {
    let describe = |flow: &ShownFlow| {
        let upstream = flow.upstream.map_or_else(String::new, |upstream| format!(" upstream={upstream}"));
        format!(
            "{} {} {} -> {} rule={}{upstream}",
            flow.id,
            flow.protocol.name(),
            flow.client,
            flow.original_destination,
            flow.rule
        )
    };
    match event {
        FlowEvent::Live(flow) => {
            format!(
                "live  {} up={} down={} age={}",
                describe(flow),
                flow.bytes_up,
                flow.bytes_down,
                age(flow.age_seconds)
            )
        }
        FlowEvent::Began(flow) => format!("began {}", describe(flow)),
        FlowEvent::Ended(flow) => format!(
            "ended {} up={} down={} age={} end={}",
            describe(flow),
            flow.bytes_up,
            flow.bytes_down,
            age(flow.age_seconds),
            flow.end.as_deref().unwrap_or("unknown")
        ),
        FlowEvent::Missed { events } => {
            format!("missed {events} events: flows come and go faster than this is read")
        }
    }
}

fn table(head: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    // What is cut off cannot be copied.
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(head);
    for number in numbers {
        if let Some(column) = table.column_mut(*number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    table
}

fn lines(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        writeln!(text, "{}", line.trim_end()).expect("a string takes all");
    }
    text
}
