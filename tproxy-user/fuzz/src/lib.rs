//! What reads bytes that others choose, held against what has to be true whatever they are. `cargo xtask fuzz` has libFuzzer
//! choose them; the tests go through what it has found worth keeping, in `corpus`, and through bytes like those.

mod arguments;
mod config;
mod dialogue;
mod dns;
mod packet;
mod request;

/// One that reads.
#[derive(Debug)]
pub struct Target {
    /// What it is called, and the directory of its corpus.
    pub name: &'static str,
    /// Has it read these bytes, and panics where something is not as it should be.
    pub read: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "packet", read: packet::read },
    Target { name: "config", read: config::read },
    Target { name: "request", read: request::read },
    Target { name: "arguments", read: arguments::read },
    Target { name: "dns", read: dns::read },
    Target { name: "dialogue", read: dialogue::read },
];

/// The one of this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::{
        collection::vec,
        prelude::*,
        sample::Index,
        test_runner::{RngAlgorithm, TestRng, TestRunner},
    };

    use super::*;

    fn corpus(target: &Target) -> Vec<Vec<u8>> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
        let files =
            fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
    }

    #[test]
    fn what_was_worth_keeping_is_read() {
        for target in TARGETS {
            let corpus = corpus(target);
            assert!(!corpus.is_empty(), "{}", target.name);
            corpus.iter().for_each(|bytes| (target.read)(bytes));
        }
    }

    /// The same each time: what is new is for the fuzzer to find.
    #[test]
    fn what_is_like_it_is_read() {
        let corpora: Vec<_> = TARGETS.iter().map(|target| (target, corpus(target))).collect();
        let change = (any::<Index>(), 0usize..4, vec(any::<u8>(), 0..4));
        let inputs = (any::<Index>(), any::<Index>(), vec(change, 0..4));
        let config = ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() };
        let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let outcome = TestRunner::new_with_rng(config, random).run(&inputs, |(target, kept, changes)| {
            let (target, corpus) = target.get(&corpora);
            let mut bytes = kept.get(corpus).clone();
            for (place, length, others) in changes {
                let start = place.index(bytes.len() + 1);
                let end = (start + length).min(bytes.len());
                bytes.splice(start..end, others);
            }
            (target.read)(&bytes);
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
    }
}
