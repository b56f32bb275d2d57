//! Counts in a log line.

/// `name=count` for what is not zero.
pub(crate) fn counts<'a>(counts: impl IntoIterator<Item = (&'a str, u64)>) -> String {
    let seen = counts.into_iter().filter(|(_, count)| *count > 0);
    let words: Vec<_> = seen.map(|(name, count)| format!("{name}={count}")).collect();
    if words.is_empty() { "none".into() } else { words.join(" ") }
}
