//! What the screen looks like.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::Line,
    widgets::{Block, Cell, Paragraph, Row, Table},
};

use super::{
    app::{App, Prompt},
    sample::{ByteRates, Picture, RatedClient, RatedFlow, RatedRule},
};
use crate::ask::{age, bytes};

pub(super) fn draw(frame: &mut Frame<'_>, app: &mut App) {
    let [head, busiest, flows, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Max(9),
        Constraint::Min(5),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    if let Some(picture) = &app.picture {
        frame.render_widget(summary(picture), head);
        let [rules, clients] =
            Layout::horizontal([Constraint::Percentage(55), Constraint::Percentage(45)]).areas(busiest);
        frame.render_widget(rule_table(&picture.rules, rules), rules);
        frame.render_widget(client_table(&picture.clients, clients), clients);
        let mut state = app.table;
        frame.render_stateful_widget(flow_table(app, &picture.flows), flows, &mut state);
        // How far it is scrolled is to stay.
        app.table = state;
    }
    frame.render_widget(last_line(app), foot);
}

fn summary(picture: &Picture) -> Paragraph<'_> {
    let status = &picture.status;
    Paragraph::new(vec![
        Line::from(format!(
            "tproxy {} - {}, {} for {}, process {}, {} rules, {} workers",
            status.version,
            status.name,
            status.state.name(),
            age(status.uptime_seconds),
            status.pid,
            status.rules,
            status.workers
        ))
        .style(Modifier::BOLD),
        Line::from(format!(
            "{:.1} connections/s   {:.1} sessions/s   up {}/s   down {}/s",
            picture.accepted,
            picture.sessions,
            per_second(picture.bytes.up),
            per_second(picture.bytes.down)
        )),
        Line::from(format!(
            "live: {} connections, {} sessions",
            status.live.connections, status.live.sessions
        )),
    ])
}

fn rule_table(rules: &[RatedRule], area: Rect) -> Table<'_> {
    let row = |rated: &RatedRule| {
        Row::new([
            Cell::from(rated.rule.name.clone()),
            Cell::from(rated.rule.action.clone()),
            number(format!("{:.1}", rated.hits)),
            number(rated.rule.hits.to_string()),
            number(rated.rule.live.to_string()),
            number(per_second(rated.bytes.all())),
        ])
    };
    let widths = [
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(6),
        Constraint::Length(10),
    ];
    let head = [
        ("rule", Aligned::Left),
        ("action", Aligned::Left),
        ("hits/s", Aligned::Right),
        ("hits", Aligned::Right),
        ("live", Aligned::Right),
        ("bytes/s", Aligned::Right),
    ];
    Table::new(rules.iter().take(area.height.into()).map(row), widths)
        .header(header(&head))
        .block(titled("rules"))
}

fn client_table(clients: &[RatedClient], area: Rect) -> Table<'_> {
    let row = |rated: &RatedClient| {
        let ByteRates { up, down } = rated.bytes;
        Row::new([
            Cell::from(rated.address.to_string()),
            number(rated.flows.to_string()),
            number(per_second(up)),
            number(per_second(down)),
        ])
    };
    let widths = [Constraint::Fill(1), Constraint::Length(6), Constraint::Length(10), Constraint::Length(10)];
    let head = [
        ("client", Aligned::Left),
        ("flows", Aligned::Right),
        ("up/s", Aligned::Right),
        ("down/s", Aligned::Right),
    ];
    Table::new(clients.iter().take(area.height.into()).map(row), widths)
        .header(header(&head))
        .block(titled("clients"))
}

fn flow_table(app: &App, flows: &[RatedFlow]) -> Table<'static> {
    let row = |rated: &RatedFlow| {
        let flow = &rated.flow;
        Row::new([
            number(flow.id.to_string()),
            Cell::from(flow.protocol.name()),
            Cell::from(flow.client.to_string()),
            Cell::from(flow.original_destination.to_string()),
            Cell::from(flow.upstream.map_or_else(|| "-".to_owned(), |upstream| upstream.to_string())),
            Cell::from(flow.rule.clone()),
            number(per_second(rated.bytes.up)),
            number(per_second(rated.bytes.down)),
            number(age(flow.age_seconds)),
            Cell::from(flow.state.name()),
        ])
    };
    let widths = [
        Constraint::Length(6),
        Constraint::Length(5),
        Constraint::Fill(3),
        Constraint::Fill(3),
        Constraint::Fill(3),
        Constraint::Fill(2),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(7),
        Constraint::Length(10),
    ];
    let head = [
        ("id", Aligned::Right),
        ("proto", Aligned::Left),
        ("client", Aligned::Left),
        ("original destination", Aligned::Left),
        ("upstream", Aligned::Left),
        ("rule", Aligned::Left),
        ("up/s", Aligned::Right),
        ("down/s", Aligned::Right),
        ("age", Aligned::Right),
        ("state", Aligned::Left),
    ];
    let mut title = format!("flows: {}, by {}", flows.len(), app.order.name());
    if app.reversed {
        title.push_str(", reversed");
    }
    if !app.filter().is_empty() {
        title.push_str(&format!(", where {}", app.filter_text()));
    }
    if app.is_paused() {
        title.push_str(" - paused");
    }
    Table::new(flows.iter().map(row), widths)
        .header(header(&head))
        .row_highlight_style(Modifier::REVERSED)
        .block(titled(title))
}

fn last_line(app: &App) -> Line<'_> {
    match (&app.prompt, &app.message) {
        (_, Some(message)) => Line::from(message.as_str()).style(Modifier::BOLD),
        (Prompt::Filter(text), None) => Line::from(format!(
            "filter: {text}_   (id proto scope rule client dst upstream state, as NAME=VALUE; Enter, Esc)"
        )),
        (Prompt::Close(id), None) => {
            Line::from(format!("close flow {id}? y, or any other key")).style(Modifier::BOLD)
        }
        (Prompt::Keys, None) => {
            Line::from("q quit   s sort   r reverse   / filter   up down select   x close   p pause")
        }
    }
}

#[derive(Clone, Copy)]
enum Aligned {
    Left,
    Right,
}

fn header(head: &[(&'static str, Aligned)]) -> Row<'static> {
    let cell = |(name, side): &(&'static str, Aligned)| match side {
        Aligned::Left => Cell::from(*name),
        Aligned::Right => number((*name).to_owned()),
    };
    Row::new(head.iter().map(cell)).style(Style::from(Modifier::DIM))
}

fn titled<'a>(title: impl Into<Line<'a>>) -> Block<'a> {
    Block::bordered().title(title)
}

fn number(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

fn per_second(rate: f64) -> String {
    bytes(rate as u64)
}
