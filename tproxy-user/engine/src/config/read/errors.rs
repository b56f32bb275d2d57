//! What is wrong with a file, a line for each mistake.

use std::{
    cell::Cell,
    fmt,
    path::{Path as FilePath, PathBuf},
};

use crate::config::path::Path;

/// Lines at most, for people to read; the rest is counted.
const MOST_LINES: usize = 100;

/// All that is wrong, in the order of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors(Vec<Problem>);

impl From<Vec<Problem>> for Errors {
    fn from(mut problems: Vec<Problem>) -> Self {
        problems.sort();
        problems.dedup();
        Self(problems)
    }
}

impl Errors {
    /// A line each.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let more = self.0.len().saturating_sub(MOST_LINES);
        let rest = (more > 0).then(|| format!("and {more} more"));
        self.0.iter().take(MOST_LINES).map(Problem::to_string).chain(rest)
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().collect::<Vec<_>>().join("\n"))
    }
}

impl std::error::Error for Errors {}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    file: PathBuf,
    /// Line and column, from 1 on; none when the file could not be read.
    place: Option<(usize, usize)>,
    key: Option<String>,
    text: String,
}

impl Problem {
    pub(super) fn unreadable(file: &FilePath, why: &str) -> Self {
        let text = format!("cannot be read: {why}; name a file that this user may read");
        Self { file: file.to_owned(), place: None, key: None, text }
    }

    pub(super) fn in_line(file: &FilePath, line: usize, column: usize, text: String) -> Self {
        Self { file: file.to_owned(), place: Some((line, column)), key: None, text }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some((line, column)) = self.place {
            write!(f, "{line}:{column}:")?;
        }
        if let Some(key) = &self.key {
            write!(f, " {key}:")?;
        }
        write!(f, " {}", self.text)
    }
}

/// A file that is being read.
pub(super) struct FileText<'a> {
    pub(super) file: &'a FilePath,
    pub(super) text: &'a str,
    /// Where somebody looked last. Mistakes come mostly in their order, and there may be as many as there are bytes.
    last: Cell<Position>,
}

#[derive(Clone, Copy)]
struct Position {
    at: usize,
    line: usize,
    column: usize,
}

impl Position {
    const START: Self = Self { at: 0, line: 1, column: 1 };
}

impl<'a> FileText<'a> {
    pub(super) const fn new(file: &'a FilePath, text: &'a str) -> Self {
        Self { file, text, last: Cell::new(Position::START) }
    }

    /// `at` counts bytes, a column counts characters.
    pub(super) fn problem(&self, at: usize, key: Option<&Path>, text: &str) -> Problem {
        let Position { line, column, .. } = self.position(at);
        Problem {
            file: self.file.to_owned(),
            place: Some((line, column)),
            key: key.map(Path::to_string).filter(|key| !key.is_empty()),
            text: text.to_owned(),
        }
    }

    fn position(&self, at: usize) -> Position {
        let at = if self.text.is_char_boundary(at) { at } else { self.text.len() };
        let last = self.last.get();
        let from = if last.at <= at { last } else { Position::START };
        let mut position = Position { at, ..from };
        for character in self.text[from.at..at].chars() {
            (position.line, position.column) = match character {
                '\n' => (position.line + 1, 1),
                _ => (position.line, position.column + 1),
            };
        }
        self.last.set(position);
        position
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;

    proptest! {
        #[test]
        fn a_place_is_the_same_whoever_looked_elsewhere_before(text in "[a\nü]{0,40}", looks in vec(any::<Index>(), 1..8)) {
            let file = FileText::new(FilePath::new("f"), &text);
            for look in looks {
                let at = look.index(text.len() + 1);
                let before = text.get(..at).unwrap_or(&text);
                let line = before.matches('\n').count() + 1;
                let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
                prop_assert_eq!(file.problem(at, None, "").place, Some((line, column)), "{} of {:?}", at, text);
            }
        }
    }
}
