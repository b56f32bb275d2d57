//! From a configuration back to what a user could have written, or wants to know.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::{
    Action, Config, Firewall, Listed, NamedSet, Rule, Scope, Selector, Treatment, Upstream, UpstreamGroup,
    draft::{
        CredentialsFile, Draft, DraftAction, DraftLimits, DraftRule, DraftSets, DraftUpstreams, Members,
        by_name,
    },
    values::{Item, Text},
};

/// As the file that would make it, with nothing left to defaults.
impl Serialize for Config {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Draft::from(self).serialize(serializer)
    }
}

impl Config {
    /// The file that would make this configuration, with nothing left to defaults.
    ///
    /// # Errors
    /// When the path of a cgroup is not UTF-8, which TOML cannot hold.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    /// How much it is, on one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let of = |scope| self.rules.iter().filter(|rule| rule.selector.reach.scope == scope).count();
        let scopes =
            [(Scope::Forwarded, "forwarded"), (Scope::Outbound, "outbound"), (Scope::Inbound, "inbound")]
                .map(|(scope, name)| (of(scope), name));
        let scopes = scopes.iter().filter(|(count, _)| *count > 0);
        let scopes: Vec<_> = scopes.map(|(count, name)| format!("{count} {name}")).collect();
        let selectors = || self.rules.iter().map(|rule| &rule.selector);
        let prefixes = count(selectors().flat_map(prefixes));
        let ports = count(selectors().map(|selector| &selector.ports));
        let (rules, scopes) = (self.rules.len(), scopes.join(", "));
        format!("nothing is wrong: rules={rules} ({scopes}) prefixes={prefixes} ports={ports}")
    }
}

/// The JSON schema of the file, on lines.
#[must_use]
pub fn schema() -> String {
    format!("{:#}\n", schemars::schema_for!(Draft).as_value())
}

impl From<&Config> for Draft {
    fn from(config: &Config) -> Self {
        let rules = || config.rules.iter();
        let selectors = || rules().map(|rule| &rule.selector);
        Self {
            name: config.name.clone(),
            metrics: config.metrics,
            mark: config.mark,
            table: config.table,
            priority: config.priority,
            steer: config.steer,
            on_exit: config.on_exit,
            admit: config.firewall == Firewall::Opened,
            workers: Some(config.workers),
            timeouts: config.timeouts,
            limits: DraftLimits {
                udp_sessions: Some(config.sessions.total),
                udp_sessions_per_client: Some(config.sessions.per_client),
                connections: Some(config.connections.total),
                connections_per_client: Some(config.connections.per_client),
            },
            sets: DraftSets {
                prefixes: used(selectors().flat_map(prefixes)),
                ports: used(selectors().map(|selector| &selector.ports)),
            },
            upstreams: rules().filter_map(|rule| named(&rule.treatment.action)).map(group).collect(),
            rules: rules().map(DraftRule::from).collect(),
        }
    }
}

impl From<&Rule> for DraftRule {
    fn from(rule: &Rule) -> Self {
        let Rule { name, selector, treatment } = rule;
        let Treatment { action, source, egress, nat, accept, timeouts, limits } = treatment.clone();
        Self {
            name: Some(name.to_string()),
            scope: Some(selector.reach.scope.into()),
            protocol: selector.reach.protocols,
            interfaces: selector.reach.interfaces.clone(),
            to: items(&selector.to),
            from: items(&selector.from),
            except: items(&selector.except),
            ports: items(&selector.ports),
            uid: selector.uids.clone(),
            cgroup: selector.cgroups.clone(),
            action: Some(match named(&action) {
                Some((name, _)) => DraftAction::Upstreams(Arc::clone(name)),
                None => DraftAction::Itself(action),
            }),
            source,
            egress,
            nat,
            accept,
            timeouts,
            limits,
        }
    }
}

/// The group that an action names.
fn named(action: &Action) -> Option<(&Arc<str>, &UpstreamGroup)> {
    match action {
        Action::Upstream(Upstream::Group(group)) => Some((group.name.as_ref()?, group)),
        _ => None,
    }
}

fn group((name, group): (&Arc<str>, &UpstreamGroup)) -> (String, DraftUpstreams) {
    let UpstreamGroup { name: _, servers, pick, check, credentials } = group.clone();
    let file = credentials.as_ref().map(|credentials| CredentialsFile { file: credentials.file().clone() });
    (name.to_string(), DraftUpstreams { servers, pick, check, credentials: file, secret: credentials })
}

fn prefixes(selector: &Selector) -> [&Listed<IpNet>; 3] {
    [&selector.from, &selector.to, &selector.except]
}

/// Values that rules list, those of a set once.
fn count<'a, T: 'a>(listed: impl Iterator<Item = &'a Listed<T>> + Clone) -> usize {
    let own: usize = listed.clone().map(|listed| listed.own.len()).sum();
    let sets: HashMap<_, _> =
        listed.flat_map(|listed| &listed.sets).map(|set| (Arc::as_ptr(set), set.members.len())).collect();
    own + sets.values().sum::<usize>()
}

fn items<T: Clone>(listed: &Listed<T>) -> Vec<Item<T>> {
    let own = listed.own.iter().cloned().map(Item::One);
    own.chain(listed.sets.iter().map(|set| by_name(&set.name))).collect()
}

/// The sets that some rule names, with their members.
fn used<'a, T: Text + Clone + 'a>(
    lists: impl Iterator<Item = &'a Listed<T>>,
) -> BTreeMap<String, Members<T>> {
    let distinct: BTreeMap<&str, &Arc<NamedSet<T>>> =
        lists.flat_map(|listed| &listed.sets).map(|set| (&*set.name, set)).collect();
    let members = |set: &NamedSet<T>| set.members.iter().cloned().map(Item::One).collect::<Vec<_>>();
    distinct.into_iter().map(|(name, set)| (name.to_owned(), members(set).into())).collect()
}
