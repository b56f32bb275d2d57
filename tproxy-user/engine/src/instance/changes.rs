//! What differs between two configurations.

use std::{collections::BTreeMap, fmt};

use crate::config::{Config, Rule};

/// What a reload changes.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Changes {
    /// Names of rules that there were not.
    pub added: Vec<String>,
    /// Names of rules that there are no more.
    pub removed: Vec<String>,
    /// Names of rules that say something else.
    pub changed: Vec<String>,
    /// Whether rules that stay are tried in another order.
    pub reordered: bool,
    /// Keys of what concerns all rules.
    pub settings: Vec<String>,
}

impl Changes {
    /// What changes when `next` takes the place of `now`.
    #[must_use]
    pub fn between(now: &Config, next: &Config) -> Self {
        let by_name = |config: &'_ Config| -> BTreeMap<String, Rule> {
            config.rules.iter().map(|rule| (rule.name.to_string(), rule.clone())).collect()
        };
        let (old, new) = (by_name(now), by_name(next));
        let names = |config: &Config, wanted: &dyn Fn(&String) -> bool| -> Vec<String> {
            config.rules.iter().map(|rule| rule.name.to_string()).filter(wanted).collect()
        };
        let stay = names(next, &|name| old.contains_key(name));
        let settings =
            [("timeouts", now.timeouts != next.timeouts), ("limits", now.sessions != next.sessions)];
        Self {
            added: names(next, &|name| !old.contains_key(name)),
            removed: names(now, &|name| !new.contains_key(name)),
            changed: stay.iter().filter(|name| old.get(*name) != new.get(*name)).cloned().collect(),
            reordered: stay != names(now, &|name| new.contains_key(name)),
            settings: settings
                .into_iter()
                .filter(|(_, differs)| *differs)
                .map(|(key, _)| key.into())
                .collect(),
        }
    }

    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// On one line; with `#`, however many names there are.
impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const FEW: usize = 8;
        let most = if f.alternate() { usize::MAX } else { FEW };
        let mut parts = Vec::new();
        for (what, names) in [("added", &self.added), ("removed", &self.removed), ("changed", &self.changed)]
        {
            if !names.is_empty() {
                let more = if names.len() > most { ", …" } else { "" };
                let shown: Vec<&str> = names.iter().take(most).map(String::as_str).collect();
                parts.push(format!("rules {what}={} ({}{more})", names.len(), shown.join(", ")));
            }
        }
        if self.reordered {
            parts.push("rules reordered".to_owned());
        }
        if !self.settings.is_empty() {
            parts.push(format!("changed: {}", self.settings.join(", ")));
        }
        if parts.is_empty() {
            parts.push("nothing changed".to_owned());
        }
        f.write_str(&parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Action, Scope};

    fn config(rules: &[(&str, Action)]) -> Config {
        let text = "[[rules]]\nscope = \"inbound\"\naction = \"direct\"";
        let rules = rules.iter().map(|(name, action)| Rule::new(name, Scope::Inbound, action.clone()));
        let parsed = config::parse("tproxy.toml".as_ref(), text.as_bytes()).unwrap();
        Config { rules: rules.collect(), ..parsed }
    }

    #[test]
    fn rules_are_told_apart_by_their_names() {
        let now = config(&[("a", Action::Direct), ("b", Action::Direct), ("c", Action::Direct)]);
        let mut next = config(&[("c", Action::Direct), ("d", Action::Drop), ("b", Action::Pass)]);
        next.timeouts.idle *= 2;
        let changes = Changes::between(&now, &next);
        assert_eq!(
            changes.to_string(),
            "rules added=1 (d); rules removed=1 (a); rules changed=1 (b); rules reordered; changed: timeouts"
        );
        let many: Vec<_> = (0..9).map(|number| (format!("n{number}"), Action::Direct)).collect();
        let many: Vec<_> = many.iter().map(|(name, action)| (name.as_str(), action.clone())).collect();
        let added = Changes::between(&config(&[]), &config(&many));
        assert!(added.to_string().ends_with("n7, …)"), "{added}");
        assert!(format!("{added:#}").ends_with("n7, n8)"), "{added:#}");
        assert!(Changes::between(&now, &now).is_empty());
        assert_eq!(Changes::between(&now, &now).to_string(), "nothing changed");
    }
}
