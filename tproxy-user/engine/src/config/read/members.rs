//! Files with the members of a set, one a line.

use std::path::{Path as FilePath, PathBuf};

use super::{Problem, file};
use crate::config::values::Text;

/// A file that could be read.
pub(super) struct MembersText {
    file: PathBuf,
    bytes: Vec<u8>,
}

/// Reads the file of this name, which is relative to the directory of `config`.
///
/// # Errors
/// One line that says what to do.
pub(super) fn read(config: &FilePath, named: &FilePath) -> Result<MembersText, String> {
    let path = beside(config, named);
    let refuse = |why: String| {
        let hint = "write a file's path, relative to the directory of the configuration file";
        Err(format!("{} cannot be read: {why}; {hint}", path.display()))
    };
    match file::read(&path) {
        Ok(bytes) => Ok(MembersText { file: path, bytes }),
        Err(error) => refuse(error.to_string()),
    }
}

/// The path of a file that is named relative to the directory of `config`.
pub(super) fn beside(config: &FilePath, file: &FilePath) -> PathBuf {
    config.parent().unwrap_or(FilePath::new("")).join(file)
}

/// The members; a line that is none becomes a problem.
pub(super) fn parse<T: Text>(text: &MembersText, problems: &mut Vec<Problem>) -> Vec<T> {
    let mut members = Vec::new();
    for (number, line) in (1..).zip(text.bytes.split(|byte| *byte == b'\n')) {
        let line = String::from_utf8_lossy(line);
        let written = line.split('#').next().unwrap_or_default();
        let member = written.trim();
        if member.is_empty() {
            continue;
        }
        match T::parse(member) {
            Ok(member) => members.push(member),
            Err(error) => {
                let column = written.chars().take_while(|c| c.is_whitespace()).count() + 1;
                let what = format!("{member:?}: {error}");
                problems.push(Problem::in_line(&text.file, number, column, what));
            }
        }
    }
    members
}
