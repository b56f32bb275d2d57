//! From the text of a file to a configuration: all that is wrong with it at once, each with its place and a remedy.

mod document;
mod errors;
mod file;
mod members;
mod node;
mod wrong;

use std::path::{Path as FilePath, PathBuf};

pub use errors::Errors;
use toml::de::DeTable;

use self::{
    document::{Document, Lenient, Value},
    errors::{FileText, Problem},
};
use super::{
    Complaint, Config, Credentials, Form, check,
    draft::{CredentialsFile, Draft, DraftRule, DraftSets, Members, MembersFile},
    path::{Path, PathStep},
    values::{Item, Text},
};

/// The configuration in a file, with the files of sets that it names.
///
/// # Errors
/// All that is wrong, with file, line and column.
pub fn load(file: &FilePath) -> Result<Config, Errors> {
    let bytes = file::read(file)
        .map_err(|error| Errors::from(vec![Problem::unreadable(file, &error.to_string())]))?;
    parse(file, &bytes)
}

/// The configuration file and the files of sets and credentials that it names, as far as they can be found out.
#[must_use]
pub fn files(file: &FilePath) -> Vec<PathBuf> {
    let mut files = vec![file.to_owned()];
    let bytes = file::read(file).unwrap_or_default();
    let table: toml::Table = toml::from_slice(&bytes).unwrap_or_default();
    let sets = table.get("sets").and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::values);
    let members = sets.filter_map(toml::Value::as_table).flat_map(toml::Table::values);
    let named = members.filter_map(|members| members.get("file")?.as_str());
    let groups =
        table.get("upstreams").and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::values);
    let secret = groups.filter_map(|group| group.get("credentials")?.get("file")?.as_str());
    files.extend(named.chain(secret).map(|named| members::beside(file, FilePath::new(named))));
    files
}

/// The configuration that a file of this name would hold.
///
/// # Errors
/// All that is wrong, with file, line and column.
pub fn parse(file: &FilePath, bytes: &[u8]) -> Result<Config, Errors> {
    let text = match str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let source = FileText::new(file, &valid);
            let problem = source.problem(valid.len(), None, "this byte is not UTF-8: save the file as UTF-8");
            return Err(vec![problem].into());
        }
    };
    FileReader { source: FileText::new(file, text), problems: Vec::new(), broken: Vec::new() }.read()
}

struct FileReader<'a> {
    source: FileText<'a>,
    problems: Vec<Problem>,
    /// What could not be read and was left out. Complaints about it would be our own fault.
    broken: Vec<Path>,
}

impl FileReader<'_> {
    fn read(mut self) -> Result<Config, Errors> {
        let (table, errors) = DeTable::parse_recoverable(self.source.text);
        for error in &errors {
            let at = error.span().map_or(0, |span| span.start);
            self.problems.push(self.source.problem(
                at,
                None,
                &format!("this is not TOML: {}", error.message()),
            ));
        }
        // What is left after a mistake of syntax is guesswork.
        if !errors.is_empty() {
            return Err(self.problems.into());
        }
        let document = Document::from(table.into_inner());
        let mut draft = self.draft(&document);
        self.read_members(&document, &mut draft.sets);
        self.read_credentials(&document, &mut draft);
        let checked = check(draft, Form::File);
        let complaints = checked.as_ref().err().into_iter().flatten();
        let justified = |complaint: &&Complaint| {
            !complaint.about.iter().any(|about| self.broken.iter().any(|broken| broken.touches(about)))
        };
        let complaints: Vec<_> = complaints.filter(justified).cloned().collect();
        for Complaint { about, text } in complaints {
            let at = document.position(&about[0]);
            self.problems.push(self.source.problem(at, Some(&about[0]), &text));
        }
        match checked {
            Ok(config) if self.problems.is_empty() => Ok(config),
            _ => Err(self.problems.into()),
        }
    }

    /// Rules are read one by one, so that a mistake costs no more than reading its rule again.
    fn draft(&mut self, document: &Document<'_>) -> Draft {
        let mut rest = document.clone();
        let rules = rest.take_array("rules");
        let mut draft: Draft = self.lenient(&Path::default(), &rest.into());
        let rules = rules.into_iter().enumerate();
        draft.rules =
            rules.map(|(index, rule)| self.lenient::<DraftRule>(&Path::rule(index), &rule)).collect();
        draft
    }

    fn lenient<T: Default + serde::de::DeserializeOwned>(&mut self, at: &Path, value: &Value<'_>) -> T {
        let Lenient { value, mistakes } = document::lenient(value);
        for mistake in mistakes {
            let path = at.join(&mistake.path);
            let text = mistake.explain(self.source.text);
            self.problems.push(self.source.problem(mistake.span.start, Some(&path), &text));
            self.broken.push(path);
        }
        value.unwrap_or_else(|| {
            self.broken.push(at.clone());
            T::default()
        })
    }

    /// Replaces the files of sets by their members, and sets that could not be read by empty ones, since they are not
    /// unknown.
    fn read_members(&mut self, document: &Document<'_>, sets: &mut DraftSets) {
        for path in self.broken.clone() {
            sets.add_empty(&path);
        }
        self.read_files("sets.prefixes", document, &mut sets.prefixes);
        self.read_files("sets.ports", document, &mut sets.ports);
    }

    /// Puts in their place the credentials that files have, and a group that could not be read, since it is not unknown.
    fn read_credentials(&mut self, document: &Document<'_>, draft: &mut Draft) {
        for path in &self.broken {
            if let [PathStep::Key(upstreams), PathStep::Key(name), ..] = path.steps()
                && upstreams == "upstreams"
            {
                draft.upstreams.entry(name.clone()).or_default();
            }
        }
        for (name, group) in &mut draft.upstreams {
            let Some(CredentialsFile { file }) = &mut group.credentials else { continue };
            let at = Path::of("upstreams").named(name).key("credentials.file");
            let path = members::beside(self.source.file, file);
            let read = file::read_secret(&path).map_err(|error| error.to_string());
            match read.and_then(|text| Credentials::parse(path.clone(), &text)) {
                Ok(credentials) => group.secret = Some(credentials),
                Err(error) => {
                    let text = format!("{}: {error}", path.display());
                    self.problems.push(self.source.problem(document.position(&at), Some(&at), &text));
                }
            }
            *file = path;
        }
    }

    fn read_files<T: Text>(
        &mut self,
        at: &str,
        document: &Document<'_>,
        sets: &mut std::collections::BTreeMap<String, Members<T>>,
    ) {
        for (name, members) in sets {
            let Members::Elsewhere(MembersFile { file }) = members else { continue };
            let at = Path::of(at).named(name).key("file");
            let items = match members::read(self.source.file, file) {
                Ok(text) => members::parse::<T>(&text, &mut self.problems),
                Err(error) => {
                    self.problems.push(self.source.problem(document.position(&at), Some(&at), &error));
                    Vec::new()
                }
            };
            *members = Members::Listed(items.into_iter().map(Item::One).collect());
        }
    }
}
