//! What is wrong with a file, a line for each mistake.

use std::{
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
}

impl FileText<'_> {
    /// `at` counts bytes, a column counts characters.
    pub(super) fn problem(&self, at: usize, key: Option<&Path>, text: &str) -> Problem {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        let column = before[line_start..].chars().count() + 1;
        Problem {
            file: self.file.to_owned(),
            place: Some((line, column)),
            key: key.map(Path::to_string).filter(|key| !key.is_empty()),
            text: text.to_owned(),
        }
    }
}
