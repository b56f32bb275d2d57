//! Names with wild cards, as shells have them: `*` is any number of characters, `?` is one.

/// Whether `name` is what `pattern` says.
#[must_use]
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let mut rest = pattern.chars();
    match rest.next() {
        None => name.is_empty(),
        Some('*') => {
            let tails = name.char_indices().map(|(at, _)| &name[at..]).chain([""]);
            // Several asterisks are as good as one, and take no longer.
            let pattern = rest.as_str().trim_start_matches('*');
            tails.into_iter().any(|tail| matches(pattern, tail))
        }
        Some(wanted) => {
            let mut name = name.chars();
            name.next().is_some_and(|first| wanted == '?' || wanted == first)
                && matches(rest.as_str(), name.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_itself_and_wild_cards_are_more() {
        for (pattern, name) in [
            ("eth0", "eth0"),
            ("br-*", "br-lan"),
            ("br-*", "br-"),
            ("*", "x"),
            ("eth?", "eth1"),
            ("*.1*0", "a.100"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("eth0", "eth01"), ("eth01", "eth0"), ("br-*", "xbr-lan"), ("eth?", "eth"), ("", "x")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
