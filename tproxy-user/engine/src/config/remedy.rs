//! What serde says of a mistake, in words that help.

/// The candidate that somebody who wrote `name` may have meant.
pub(super) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LIKELY: f64 = 0.6;
    let likeness = |candidate| (strsim::normalized_damerau_levenshtein(name, candidate), candidate);
    let likely = candidates.into_iter().map(likeness).filter(|(likeness, _)| *likeness >= LIKELY);
    likely.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, candidate)| candidate)
}

/// What is wrong with `written`, and what to write, made of serde's message (their forms are in `serde::de::Error`).
pub(super) fn explain(message: &str, written: &str) -> String {
    if let Some(rest) = message.strip_prefix("unknown field `") {
        let (name, known) = name_and_candidates(rest);
        return match nearest(name, known.iter().copied()) {
            Some(meant) => format!("this key is not known here; did you mean {meant}?"),
            None => format!("this key is not known here; those that are: {}", known.join(", ")),
        };
    }
    if let Some(rest) = message.strip_prefix("unknown variant `") {
        let (name, known) = name_and_candidates(rest);
        let meant = nearest(name, known.iter().copied());
        let meant = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
        return format!("{written}: write {}{meant}", known.join(", "));
    }
    if let Some(key) = message.strip_prefix("missing field `") {
        return format!("{written}: write {} = … too", key.trim_end_matches('`'));
    }
    let kind = ["invalid type: ", "invalid value: ", "invalid length "];
    match message.rsplit_once(", expected ") {
        Some((_, expected)) if kind.iter().any(|kind| message.starts_with(kind)) => match expected {
            "a sequence" if !written.starts_with(['[', '{']) => format!("write [{written}], a list"),
            _ => format!("{written}: write {}", in_toml(expected)),
        },
        _ => format!("{written}: {message}"),
    }
}

/// Of "NAME`, expected `ONE`, `OTHER`", or whatever words serde puts between them.
fn name_and_candidates(rest: &str) -> (&str, Vec<&str>) {
    let (name, expected) = rest.rsplit_once("`, expected ").unwrap_or((rest, ""));
    (name, expected.split('`').skip(1).step_by(2).collect())
}

/// What Rust's types are to somebody who writes TOML.
fn in_toml(expected: &str) -> &str {
    match expected {
        "a sequence" => "a list in brackets: [ … ]",
        "a map" => "a table: { KEY = … }",
        "a string" | "path string" => "a text in quotes",
        "u32" => "a whole number from 0 to 4294967295",
        "usize" => "a whole number, from 0 on",
        "a nonzero usize" => "a whole number, from 1 on",
        _ if expected.starts_with("struct ") => "a table: { KEY = … }",
        _ if expected.starts_with("enum ") || expected.starts_with("variant ") => "a text in quotes",
        other => other,
    }
}
