//! Whatever a file holds, the answer is a configuration or lines that name places.

use proptest::{prelude::*, sample::Index};

use super::{shipped::EXAMPLES, *};

fn assert_answered(bytes: &[u8]) {
    let Err(errors) = parse("examples/tproxy.toml".as_ref(), bytes) else { return };
    assert!(errors.lines().count() > 0);
    for line in errors.lines() {
        let mut parts = line.splitn(4, ':');
        let file = parts.next();
        let numbers: Vec<usize> = parts.by_ref().take(2).filter_map(|part| part.parse().ok()).collect();
        let named =
            file == Some("examples/tproxy.toml") && numbers.len() == 2 && numbers.iter().all(|n| *n > 0);
        assert!(named || line.starts_with("and "), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }
}

/// What may stand anywhere by mistake.
const FRAGMENTS: &[&str] = &[
    "",
    "\"",
    "'",
    "[",
    "]",
    "[[",
    "{",
    "}",
    "=",
    ",",
    ".",
    "\n",
    "#",
    "@",
    "-1",
    "0",
    "1e9",
    "true",
    "nan",
    "1979-05-27",
    "99999999999999999999",
    "[[rules]]\n",
    "[sets.ports]\n",
    "\"@web\"",
    "\u{0}",
    "ü",
    "{}",
    "[]",
    "\"\"\"",
    "rules",
    "scope",
    "0x",
    "a.b.c",
    "\\",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        assert_answered(&bytes);
    }

    #[test]
    fn examples_with_mistakes(
        example in any::<Index>(),
        mistakes in prop::collection::vec((any::<Index>(), 0usize..12, prop::sample::select(FRAGMENTS)), 1..4),
    ) {
        let mut text = example.get(&EXAMPLES).1.as_bytes().to_vec();
        for (place, length, fragment) in mistakes {
            let start = place.index(text.len() + 1);
            let end = (start + length).min(text.len());
            text.splice(start..end, fragment.bytes());
        }
        assert_answered(&text);
    }

    #[test]
    fn examples_whose_values_are_others(
        example in any::<Index>(),
        line in any::<Index>(),
        value in prop::sample::select(FRAGMENTS),
    ) {
        let mut lines: Vec<_> = example.get(&EXAMPLES).1.lines().map(str::to_owned).collect();
        let line = line.get_mut(&mut lines);
        if let Some((key, _)) = line.split_once('=') {
            *line = format!("{key}= {value}");
        }
        assert_answered(lines.join("\n").as_bytes());
    }
}
