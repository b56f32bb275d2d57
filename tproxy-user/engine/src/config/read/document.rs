//! A parsed document that knows where everything stands.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue, ValueDeserializer},
};

use crate::config::{
    path::{Path, PathStep},
    remedy,
};

/// Mistakes in one part of a document after which it is left at that: reading a part again costs its length.
const MOST_MISTAKES: usize = 100;

/// How much of a wrong value is repeated, in characters.
const REPEATED: usize = 40;

type Value<'i> = Spanned<DeValue<'i>>;

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
    message: String,
}

impl Mistake {
    /// What is wrong and what to write, on one line.
    pub(super) fn explain(&self, text: &str) -> String {
        let line = text.get(self.span.clone()).unwrap_or_default().lines().next().unwrap_or_default();
        let mut written: String = line.chars().take(REPEATED).collect();
        if written.len() < line.len() {
            written.push('…');
        }
        remedy::explain(&self.message, &written)
    }
}

/// Reads a value without what is wrong in it: serde stops at the first mistake, which is noted and taken out, and then
/// it is asked again.
pub(super) fn lenient<T: DeserializeOwned>(original: Value<'_>) -> Lenient<T> {
    let mut mistakes: Vec<Mistake> = Vec::new();
    let mut rest = original.clone();
    while mistakes.len() < MOST_MISTAKES {
        let error = match T::deserialize(ValueDeserializer::from(rest.clone())) {
            Ok(value) => return Lenient { value: Some(value), mistakes },
            Err(error) => error,
        };
        let span = error.span().unwrap_or_else(|| original.span());
        let path = find(&original, &span).unwrap_or_default();
        // What lacks something may lack it because that was wrong, and is out.
        if !mistakes.iter().any(|mistake| mistake.path.steps().starts_with(path.steps())) {
            mistakes.push(Mistake { path, span: span.clone(), message: error.message().to_owned() });
        }
        let Some(path) = find(&rest, &span) else { break };
        if !remove(&mut rest, path.steps()) {
            break;
        }
    }
    Lenient { value: None, mistakes }
}

/// The path of the innermost key or value that holds `span`.
fn find(value: &Value<'_>, span: &Range<usize>) -> Option<Path> {
    let holds = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let step =
        |step: PathStep, below: Option<Path>| Path::default().then(step).join(&below.unwrap_or_default());
    match value.get_ref() {
        DeValue::Table(table) => {
            let key = |key: &Spanned<_>| PathStep::Key(AsRef::<str>::as_ref(key.get_ref()).to_owned());
            let inner = table.iter().find_map(|(k, v)| Some(step(key(k), Some(find(v, span)?))));
            let outer = || table.iter().find(|(k, v)| holds(k.span()) || holds(v.span()));
            inner.or_else(|| outer().map(|(k, _)| step(key(k), None)))
        }
        DeValue::Array(array) => {
            let inner = array.iter().enumerate();
            let inner = inner.clone().find_map(|(i, v)| Some(step(PathStep::Index(i), Some(find(v, span)?))));
            inner.or_else(|| {
                let outer = array.iter().position(|v| holds(v.span()));
                outer.map(|i| step(PathStep::Index(i), None))
            })
        }
        _ => None,
    }
}

fn remove(value: &mut Value<'_>, path: &[PathStep]) -> bool {
    match (value.get_mut(), path) {
        (DeValue::Table(table), [PathStep::Key(key)]) => table.remove(key.as_str()).is_some(),
        (DeValue::Table(table), [PathStep::Key(key), below @ ..]) => {
            table.get_mut(key.as_str()).is_some_and(|value| remove(value, below))
        }
        (DeValue::Array(array), [PathStep::Index(index)]) => {
            let others =
                std::mem::replace(array, DeArray::new()).into_iter().enumerate().filter(|(i, _)| i != index);
            *array = others.map(|(_, value)| value).collect();
            true
        }
        (DeValue::Array(array), [PathStep::Index(index), below @ ..]) => {
            array.get_mut(*index).is_some_and(|value| remove(value, below))
        }
        _ => false,
    }
}
