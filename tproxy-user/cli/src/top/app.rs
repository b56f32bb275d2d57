//! What is shown, and what the user has chosen.

use std::cmp::Ordering;

use ratatui::widgets::TableState;
use tproxy::flows::{Filter, FlowId};

use super::sample::{Picture, RatedFlow, Sample};

/// By what the flows are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Rate,
    Bytes,
    Age,
    Client,
    Destination,
    Rule,
}

impl Order {
    const ALL: [Self; 6] = [Self::Rate, Self::Bytes, Self::Age, Self::Client, Self::Destination, Self::Rule];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Bytes => "bytes",
            Self::Age => "age",
            Self::Client => "client",
            Self::Destination => "destination",
            Self::Rule => "rule",
        }
    }

    /// Large numbers first, names in their order.
    fn compare(self, a: &RatedFlow, b: &RatedFlow) -> Ordering {
        let bytes = |it: &RatedFlow| it.flow.bytes_up + it.flow.bytes_down;
        let by = match self {
            Self::Rate => b.bytes.all().total_cmp(&a.bytes.all()).then(bytes(b).cmp(&bytes(a))),
            Self::Bytes => bytes(b).cmp(&bytes(a)),
            Self::Age => b.flow.age_seconds.total_cmp(&a.flow.age_seconds),
            Self::Client => a.flow.client.cmp(&b.flow.client),
            Self::Destination => a.flow.original_destination.cmp(&b.flow.original_destination),
            Self::Rule => a.flow.rule.cmp(&b.flow.rule),
        };
        by.then(a.flow.id.cmp(&b.flow.id))
    }
}

/// What the last line is for at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Prompt {
    /// The keys.
    Keys,
    /// A filter is being written.
    Filter(String),
    /// Is this flow to be closed?
    Close(FlowId),
}

pub(super) struct App {
    pub(super) picture: Option<Picture>,
    pub(super) prompt: Prompt,
    pub(super) order: Order,
    pub(super) reversed: bool,
    pub(super) message: Option<String>,
    pub(super) table: TableState,
    filter: Filter,
    paused: bool,
    latest: Option<Sample>,
    /// Stays selected, wherever it is.
    selected: Option<FlowId>,
}

impl App {
    pub(super) fn new(filter: Filter) -> Self {
        Self {
            picture: None,
            prompt: Prompt::Keys,
            order: Order::Rate,
            reversed: false,
            message: None,
            table: TableState::default(),
            filter,
            paused: false,
            latest: None,
            selected: None,
        }
    }

    pub(super) fn take(&mut self, sample: Sample) {
        self.picture = Some(Picture::of(self.latest.as_ref(), sample.clone()));
        self.latest = Some(sample);
        self.arrange();
    }

    pub(super) fn say(&mut self, message: String) {
        self.message = Some(message);
    }

    pub(super) const fn filter(&self) -> &Filter {
        &self.filter
    }

    /// The filter as it is written.
    pub(super) fn filter_text(&self) -> String {
        let query = serde_urlencoded::to_string(&self.filter).unwrap_or_default();
        let words = serde_urlencoded::from_str::<Vec<(String, String)>>(&query).unwrap_or_default();
        words.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }

    /// Takes a filter as it is written: `client=10.0.0.0/8 proto=tcp`.
    pub(super) fn set_filter(&mut self, text: &str) -> Result<(), String> {
        let words: Vec<_> = text
            .split_whitespace()
            .map(|word| word.split_once('=').ok_or_else(|| format!("write NAME=VALUE, not '{word}'")))
            .collect::<Result<_, _>>()?;
        let query = serde_urlencoded::to_string(words).map_err(|error| error.to_string())?;
        self.filter = serde_urlencoded::from_str(&query).map_err(|error| error.to_string())?;
        Ok(())
    }

    pub(super) const fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) const fn pause(&mut self) {
        self.paused = !self.paused;
    }

    pub(super) fn next_order(&mut self) {
        let at = Order::ALL.iter().position(|order| *order == self.order).unwrap_or_default();
        self.order = Order::ALL[(at + 1) % Order::ALL.len()];
        self.arrange();
    }

    pub(super) fn reverse(&mut self) {
        self.reversed = !self.reversed;
        self.arrange();
    }

    /// Selects another flow, so many lines below.
    pub(super) fn move_by(&mut self, lines: isize) {
        let flows = self.flows();
        let last = flows.len().saturating_sub(1);
        let at = self.table.selected().map_or(0, |at| at.saturating_add_signed(lines).min(last));
        self.selected = flows.get(at).map(|flow| flow.flow.id);
        self.table.select(self.selected.map(|_| at));
    }

    pub(super) fn selected(&self) -> Option<FlowId> {
        self.table.selected().and(self.selected)
    }

    fn flows(&self) -> &[RatedFlow] {
        self.picture.as_ref().map_or(&[], |picture| &picture.flows)
    }

    fn arrange(&mut self) {
        let (order, reversed) = (self.order, self.reversed);
        if let Some(picture) = &mut self.picture {
            picture.flows.sort_by(|a, b| {
                let by = order.compare(a, b);
                if reversed { by.reverse() } else { by }
            });
        }
        let at = self.flows().iter().position(|flow| Some(flow.flow.id) == self.selected);
        self.table.select(at);
    }
}
