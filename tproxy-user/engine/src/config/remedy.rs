//! A mistake in words that help.

use std::fmt;

/// What is wrong with something in a file.
#[derive(Debug)]
pub(super) enum Fault {
    /// No such key is known here.
    UnknownKey { name: String, known: &'static [&'static str] },
    /// It is none of these words.
    UnknownWord { name: String, known: &'static [&'static str] },
    /// A key that has to be there is not.
    MissingKey(&'static str),
    /// It is something else than is wanted.
    Unlike(Instead),
    /// In words of our own.
    Said(String),
}

/// What is to be written instead.
#[derive(Debug)]
pub(super) enum Instead {
    List,
    Table,
    Text,
    Truth,
    /// A whole one, at most this.
    Number {
        most: Option<u32>,
    },
    Other(String),
}

impl fmt::Display for Instead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List => f.write_str("a list in brackets: [ … ]"),
            Self::Table => f.write_str("a table: { KEY = … }"),
            Self::Text => f.write_str("a text in quotes"),
            Self::Truth => f.write_str("true or false"),
            Self::Number { most: None } => f.write_str("a whole number, from 0 on"),
            Self::Number { most: Some(most) } => write!(f, "a whole number from 0 to {most}"),
            Self::Other(other) => f.write_str(other),
        }
    }
}

/// The candidate that somebody who wrote `name` may have meant.
pub(super) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LIKELY: f64 = 0.6;
    let likeness = |candidate| (strsim::normalized_damerau_levenshtein(name, candidate), candidate);
    let likely = candidates.into_iter().map(likeness).filter(|(likeness, _)| *likeness >= LIKELY);
    likely.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, candidate)| candidate)
}

/// What is wrong with `written`, and what to write.
pub(super) fn explain(fault: &Fault, written: &str) -> String {
    match fault {
        Fault::UnknownKey { name, known } => match nearest(name, known.iter().copied()) {
            Some(meant) => format!("this key is not known here; did you mean {meant}?"),
            None => format!("this key is not known here; those that are: {}", known.join(", ")),
        },
        Fault::UnknownWord { name, known } => {
            let meant = nearest(name, known.iter().copied());
            let meant = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
            format!("{written}: write {}{meant}", known.join(", "))
        }
        Fault::MissingKey(key) => format!("{written}: write {key} = … too"),
        Fault::Unlike(Instead::List) if !written.starts_with(['[', '{']) => {
            format!("write [{written}], a list")
        }
        Fault::Unlike(wanted) => format!("{written}: write {wanted}"),
        Fault::Said(said) => format!("{written}: {said}"),
    }
}
