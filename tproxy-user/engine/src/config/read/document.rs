//! A parsed document that knows where everything stands.

use std::{collections::HashSet, ops::Range};

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::node::Node;
use crate::config::{
    path::{Path, PathStep},
    remedy::{self, Fault},
};

/// Mistakes in one part of a document after which it is left at that: reading a part again costs its length.
const MOST_MISTAKES: usize = 100;

/// How much of a wrong value is repeated, in characters.
const REPEATED: usize = 40;

pub(super) type Value<'i> = Spanned<DeValue<'i>>;

#[derive(Clone)]
pub(super) struct Document<'i>(Value<'i>);

impl<'i> From<DeTable<'i>> for Document<'i> {
    fn from(table: DeTable<'i>) -> Self {
        Self(Spanned::new(0..0, DeValue::Table(table)))
    }
}

impl<'i> From<Document<'i>> for Value<'i> {
    fn from(document: Document<'i>) -> Self {
        document.0
    }
}

impl<'i> Document<'i> {
    /// Takes the entries of an array out; anything else stays, to be found wrong.
    pub(super) fn take_array(&mut self, key: &str) -> Vec<Value<'i>> {
        let DeValue::Table(table) = self.0.get_mut() else { return Vec::new() };
        if !table.get(key).is_some_and(|value| matches!(value.get_ref(), DeValue::Array(_))) {
            return Vec::new();
        }
        match table.remove(key).map(Spanned::into_inner) {
            Some(DeValue::Array(array)) => array.into_iter().collect(),
            _ => Vec::new(),
        }
    }

    /// Where a value begins, or what is there of its path; in bytes.
    pub(super) fn position(&self, path: &Path) -> usize {
        let mut value = &self.0;
        for step in path.steps() {
            let below = match (step, value.get_ref()) {
                (PathStep::Key(key), DeValue::Table(table)) => table.get(key.as_str()),
                (PathStep::Index(index), DeValue::Array(array)) => array.get(*index),
                _ => None,
            };
            let Some(below) = below else { break };
            value = below;
        }
        value.span().start
    }
}

/// What could be read, if it is not wrong altogether, and what could not.
pub(super) struct Lenient<T> {
    pub(super) value: Option<T>,
    pub(super) mistakes: Vec<Mistake>,
}

pub(super) struct Mistake {
    pub(super) path: Path,
    pub(super) span: Range<usize>,
    fault: Fault,
}

impl Mistake {
    /// What is wrong and what to write, on one line.
    pub(super) fn explain(&self, text: &str) -> String {
        let line = text.get(self.span.clone()).unwrap_or_default().lines().next().unwrap_or_default();
        let mut written: String = line.chars().take(REPEATED).collect();
        if written.len() < line.len() {
            written.push('…');
        }
        remedy::explain(&self.fault, &written)
    }
}

/// Reads a value without what is wrong in it: serde stops at the first mistake, which is noted and left out, and then
/// it is asked again.
pub(super) fn lenient<T: DeserializeOwned>(value: &Value<'_>) -> Lenient<T> {
    let mut mistakes: Vec<Mistake> = Vec::new();
    let mut left_out = HashSet::new();
    while mistakes.len() < MOST_MISTAKES {
        let wrong = match T::deserialize(Node { value, left_out: &left_out }) {
            Ok(value) => return Lenient { value: Some(value), mistakes },
            Err(wrong) => wrong,
        };
        let (path, span, entry) = (wrong.path(), wrong.span().unwrap_or_else(|| value.span()), wrong.entry());
        // What lacks something may lack it because that was wrong, and is out.
        if !mistakes.iter().any(|mistake| mistake.path.steps().starts_with(path.steps())) {
            mistakes.push(Mistake { path, span, fault: wrong.fault });
        }
        if !entry.is_some_and(|entry| left_out.insert(entry)) {
            break;
        }
    }
    Lenient { value: None, mistakes }
}
