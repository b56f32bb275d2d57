//! What a machine runs: the very programs that `cargo xtask test` runs here.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    process::{cargo, output, run},
    test::BUILD,
};

/// Where cargo put them.
pub(super) struct Programs {
    /// The example that shows what the verifier makes of the object.
    pub(super) verify: PathBuf,
    /// The library's own tests.
    pub(super) library: PathBuf,
    /// Those of the scenarios.
    pub(super) scenarios: PathBuf,
}

impl Programs {
    /// Builds what is not built yet.
    pub(super) fn build() -> Result<Self> {
        run(cargo().args(BUILD))?;
        let messages = output(cargo().args(BUILD).args(["--quiet", "--message-format=json"]))?;
        let built = Built::read(&messages);
        Ok(Self {
            verify: built.find("example", "verify")?,
            library: built.find("lib", "tproxy")?,
            scenarios: built.find("test", "scenarios")?,
        })
    }
}

/// Kind and name of the targets, and what was built of them.
struct Built(Vec<(String, String, PathBuf)>);

impl Built {
    fn read(messages: &str) -> Self {
        let artifact = |line: &str| {
            let message: Value = serde_json::from_str(line).ok()?;
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let target = &message["target"];
            Some((text(&target["kind"][0])?, text(&target["name"])?, text(&message["executable"])?.into()))
        };
        Self(messages.lines().filter_map(artifact).collect())
    }

    fn find(&self, kind: &str, name: &str) -> Result<PathBuf> {
        let found = self.0.iter().find(|(of, called, _)| of == kind && called == name);
        found.map(|(_, _, path)| path.clone()).with_context(|| format!("cargo built no {kind} {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_built_is_found_by_kind_and_name() {
        let built = Built::read(concat!(
            r#"{"target":{"kind":["lib"],"name":"tproxy"},"executable":null}"#,
            "\n",
            r#"{"target":{"kind":["lib"],"name":"tproxy"},"executable":"/t/deps/tproxy-1"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        ));
        assert_eq!(built.find("lib", "tproxy").unwrap(), PathBuf::from("/t/deps/tproxy-1"));
        assert!(built.find("test", "tproxy").is_err());
    }
}
