//! What serde finds wrong, by its kind: the texts of its errors are for programmers.

use std::{fmt, ops::Range};

use serde::de::{self, Expected, Unexpected};

use super::document::Value;
use crate::config::{
    path::{Path, PathStep},
    remedy::{Fault, Instead},
};

/// The first thing that is wrong, and where.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) fault: Fault,
    /// Steps to it, the last one first.
    steps: Vec<PathStep>,
    /// What is wrong, or the key of it.
    span: Option<Range<usize>>,
    /// The entry that reading can go on without.
    entry: Option<EntryId>,
}

/// An entry of a table or a list, as long as the document stays where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct EntryId(*const ());

impl EntryId {
    pub(super) const fn of(value: &Value<'_>) -> Self {
        Self(std::ptr::from_ref(value).cast())
    }
}

impl Wrong {
    pub(super) const fn new(fault: Fault) -> Self {
        Self { fault, steps: Vec::new(), span: None, entry: None }
    }

    /// Says what was wanted of a value that is of another kind, if it is that value which is wrong, and not one in it.
    pub(super) fn wanting(mut self, wanted: Instead) -> Self {
        if let (Fault::Unlike(unlike), []) = (&mut self.fault, &self.steps[..]) {
            *unlike = wanted;
        }
        self
    }

    /// It is here, unless it is known to be further in.
    pub(super) fn at(mut self, span: Range<usize>) -> Self {
        self.span.get_or_insert(span);
        self
    }

    /// It is in this entry.
    pub(super) fn within(mut self, step: PathStep, value: &Value<'_>) -> Self {
        self.steps.push(step);
        self.entry.get_or_insert(EntryId::of(value));
        self.at(value.span())
    }

    pub(super) fn path(&self) -> Path {
        self.steps.iter().rev().cloned().fold(Path::default(), Path::then)
    }

    pub(super) fn span(&self) -> Option<Range<usize>> {
        self.span.clone()
    }

    /// None, where all of it is wrong.
    pub(super) const fn entry(&self) -> Option<EntryId> {
        self.entry
    }
}

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(said: T) -> Self {
        Self::new(Fault::Said(said.to_string()))
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Fault::Unlike(Instead::Other(expected.to_string())))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Fault::Unlike(Instead::Other(expected.to_string())))
    }

    fn unknown_variant(name: &str, known: &'static [&'static str]) -> Self {
        Self::new(Fault::UnknownWord { name: name.to_owned(), known })
    }

    fn unknown_field(name: &str, known: &'static [&'static str]) -> Self {
        Self::new(Fault::UnknownKey { name: name.to_owned(), known })
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(Fault::MissingKey(key))
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.path(), self.fault)
    }
}

impl std::error::Error for Wrong {}
