//! Values that a rule lists, one by one and by the names of sets.

use std::sync::Arc;

/// What a rule lists of a dimension. That it lists nothing means any value; that its sets have no members means none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed<T> {
    /// Values of the rule's own.
    pub own: Vec<T>,
    /// Sets that rules share.
    pub sets: Vec<Arc<NamedSet<T>>>,
}

/// Values that rules name together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSet<T> {
    /// Rules write `@NAME`.
    pub name: Arc<str>,
    /// In the order in which they were written.
    pub members: Vec<T>,
}

impl<T> Listed<T> {
    /// Whether the rule does not care.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.own.is_empty() && self.sets.is_empty()
    }

    /// All values.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.own.iter().chain(self.sets.iter().flat_map(|set| &set.members))
    }
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl<T> From<Vec<T>> for Listed<T> {
    fn from(own: Vec<T>) -> Self {
        Self { own, sets: Vec::new() }
    }
}
