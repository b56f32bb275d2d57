//! A configuration file: what it says, or lines that name places in it; and what is printed is read as the same.

use std::path::Path;

use tproxy::config;

pub(crate) fn read(bytes: &[u8]) {
    const FILE: &str = "fuzz.toml";
    match config::parse(Path::new(FILE), bytes) {
        Ok(config) => {
            let text = config.to_toml().expect("what was read can be written");
            // Without the sets that no rule names.
            let again = config::parse(Path::new(FILE), text.as_bytes())
                .unwrap_or_else(|errors| panic!("{errors}\n{text}"));
            assert_eq!(again.to_toml().expect("what was read can be written"), text);
        }
        Err(errors) => {
            let lines = errors.to_string();
            assert!(!lines.is_empty());
            for line in lines.lines() {
                assert!(line.starts_with("fuzz.toml:") || line.starts_with("and "), "{line}");
            }
        }
    }
}
