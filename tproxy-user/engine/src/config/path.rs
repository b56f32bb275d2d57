//! Where in a configuration something stands: `rules[2].ports[0]`.

use std::fmt;

/// Steps from the root of the document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Path(Vec<PathStep>);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PathStep {
    Key(String),
    Index(usize),
}

impl Path {
    /// A dotted path of keys.
    pub(super) fn of(keys: &str) -> Self {
        Self::default().key(keys)
    }

    pub(super) fn rule(index: usize) -> Self {
        Self::of("rules").index(index)
    }

    /// Below this one; `keys` may be dotted.
    pub(super) fn key(&self, keys: &str) -> Self {
        keys.split('.').fold(self.clone(), |path, key| path.then(PathStep::Key(key.to_owned())))
    }

    /// Below this one, by a key that the user chose.
    pub(super) fn named(&self, name: &str) -> Self {
        self.clone().then(PathStep::Key(name.to_owned()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.clone().then(PathStep::Index(index))
    }

    pub(super) fn then(mut self, step: PathStep) -> Self {
        self.0.push(step);
        self
    }

    pub(super) fn join(&self, below: &Self) -> Self {
        Self(self.0.iter().chain(&below.0).cloned().collect())
    }

    pub(super) fn steps(&self) -> &[PathStep] {
        &self.0
    }

    /// Whether one of the two is in the other. An entry of a list stands for all of it, but not a rule for all rules.
    pub(super) fn touches(&self, other: &Self) -> bool {
        let list = |path: &Self| match path.0.split_last() {
            Some((PathStep::Index(_), list)) if list.len() > 1 => list.to_vec(),
            _ => path.0.clone(),
        };
        let (one, other) = (list(self), list(other));
        one.starts_with(&other) || other.starts_with(&one)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            let dot = if position == 0 { "" } else { "." };
            match step {
                PathStep::Index(index) => write!(f, "[{index}]")?,
                PathStep::Key(key) if is_bare(key) => write!(f, "{dot}{key}")?,
                PathStep::Key(key) => write!(f, "{dot}{key:?}")?,
            }
        }
        Ok(())
    }
}

/// Whether TOML takes the key without quotes.
fn is_bare(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}
