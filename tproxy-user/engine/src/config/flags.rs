//! A configuration by the flags of a command.

use std::path::PathBuf;

use clap::Args as _;

use super::{
    Config, Form, check,
    draft::{Draft, DraftRule},
    load,
};

/// A file, or one rule and what goes with it.
#[derive(Debug, clap::Args)]
pub struct Flags {
    /// Take everything from this file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    rule: DraftRule,
    #[command(flatten)]
    draft: Draft,
}

/// What makes no sense, a line for each mistake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Mistakes(pub Vec<String>);

impl Flags {
    /// The file.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        self.config.clone()
    }

    /// Reads the file, if there is one, and checks all of it.
    ///
    /// # Errors
    /// [`Mistakes`]
    pub fn into_config(self) -> Result<Config, Mistakes> {
        if let Some(file) = self.config {
            if (self.rule, self.draft) != (DraftRule::default(), Draft::default()) {
                return Err(Mistakes(vec![
                    "error: --config takes everything from the file: leave the other flags out, or write them there"
                        .to_owned(),
                ]));
            }
            return load(&file).map_err(|errors| Mistakes(errors.lines().collect()));
        }
        let rule = DraftRule { name: Some("cli".into()), ..self.rule };
        let complaints = check(Draft { rules: vec![rule], ..self.draft }, Form::Flags);
        complaints
            .map_err(|complaints| Mistakes(complaints.iter().map(|it| format!("error: {it}")).collect()))
    }
}

/// The flag of a key, which may be dotted.
pub(super) fn name(key: &str) -> String {
    let (whole, id) = (key.replace('.', "_"), key.rsplit('.').next().unwrap_or(key));
    let flags = DraftRule::augment_args(Draft::augment_args(clap::Command::new("run")));
    let find = |id: &str| flags.get_arguments().find(|flag| flag.get_id() == id);
    let flag = find(&whole).or_else(|| find(id));
    format!("--{}", flag.and_then(|flag| flag.get_long()).unwrap_or(id))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        flags: Flags,
    }

    #[test]
    fn the_defaults_of_flags_are_those_of_the_file() {
        let Command { flags } = Command::parse_from(["run"]);
        assert_eq!((flags.rule, flags.draft), (DraftRule::default(), Draft::default()));
    }
}
