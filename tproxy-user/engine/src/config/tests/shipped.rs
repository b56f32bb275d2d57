//! What is shipped: examples, schema, documentation.

use std::path::Path as FilePath;

use serde_json::Value;

use super::*;

/// By name below `deploy/examples`, with their text.
pub(super) const EXAMPLES: [(&str, &str); 4] = [
    ("gateway.toml", include_str!("../../../../../deploy/examples/gateway.toml")),
    ("sidecar.toml", include_str!("../../../../../deploy/examples/sidecar.toml")),
    ("proxied.toml", include_str!("../../../../../deploy/examples/proxied.toml")),
    ("bench.toml", include_str!("../../../../../deploy/examples/bench.toml")),
];

const PAGE: &str = include_str!("../../../../../docs/configuration.md");

#[test]
fn the_examples_are_good_and_printed_as_they_are() {
    let directory = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/examples");
    for (name, text) in EXAMPLES {
        let config = load(&directory.join(name)).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(good(&config.to_toml().unwrap()), config, "{name}");
        assert!(text.starts_with("#:schema ../tproxy.schema.json\n"), "{name}");
    }
}

#[test]
fn the_schema_in_the_tree_is_current() {
    let committed = include_str!("../../../../../deploy/tproxy.schema.json");
    assert_eq!(committed, schema(), "make it anew: cargo run -- config --schema > deploy/tproxy.schema.json");
}

/// Every key of the file, as a path, by the schema.
fn keys(schema: &Value, at: &str, root: &Value) -> Vec<String> {
    let resolved = match schema["$ref"].as_str() {
        Some(reference) => &root["$defs"][reference.trim_start_matches("#/$defs/")],
        None => schema,
    };
    let mut found = Vec::new();
    for (key, below) in resolved["properties"].as_object().into_iter().flatten() {
        let path = format!("{at}{key}");
        let inner = keys(below, &format!("{path}."), root);
        let inner = if below["items"].is_object() {
            keys(&below["items"], &format!("{path}[]."), root)
        } else {
            inner
        };
        if inner.is_empty() {
            found.push(path);
        }
        found.extend(inner);
    }
    if let Some(below) = resolved["additionalProperties"].as_object() {
        assert!(!below.is_empty());
        found.push(format!("{at}NAME"));
    }
    found
}

#[test]
fn the_documentation_explains_every_key_and_no_other() {
    let schema: Value = serde_json::from_str(&schema()).unwrap();
    let mut keys = keys(&schema, "", &schema);
    keys.sort();
    assert!(keys.len() > 25, "{keys:?}");
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let mut documented: Vec<_> = rows.map(|(key, _)| key.replace("[[rules]] ", "rules[].")).collect();
    documented.sort();
    assert_eq!(documented, keys);
}
