//! From a draft to a configuration: what does not go together, all of it, whoever wrote it and how.

mod rule;
mod upstreams;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    hash::Hash,
    iter,
    sync::Arc,
};

use ipnet::IpNet;
use rustix::process::{Resource, Rlimit, getrlimit};
use tproxy_common::{
    abi::MAX_WORKERS,
    capacity,
    defaults::{MOST_CONNECTIONS, MOST_SESSIONS, SHARES},
    flow::Protocol,
    rule::MAX_RULES,
};

use super::{
    Config, ConnectionLimits, Listed, NamedSet, Rule, SessionLimits,
    draft::{Draft, DraftRule, Members},
    path::Path,
    values::{Item, Text},
};
use crate::mark::Mark;

/// Distinct prefixes of one direction: half of what a map takes, since a reload keeps the old rules until the new ones are
/// complete, without what is in it whatever the rules: two roots and two link-local ones.
pub(super) const MOST_PREFIXES: usize = capacity::PREFIXES as usize / 2 - 4;

/// The same for user ids and for cgroups.
const MOST_SENDERS: usize = capacity::SENDERS as usize / 2;

/// Something that makes no sense, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// What has to be right for the complaint to be justified; the first is where it is.
    pub(super) about: Vec<Path>,
    /// One line.
    pub(super) text: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How the user wrote it, and so how it is named to him.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `--port 80`
    #[cfg(feature = "flags")]
    Flags,
    /// `ports = [80]`
    File,
}

impl Form {
    /// The name of a key, which may be dotted.
    pub(super) fn key(self, key: &str) -> String {
        match self {
            Self::File => key.to_owned(),
            #[cfg(feature = "flags")]
            Self::Flags => super::flags::name(key),
        }
    }

    /// A key with a value.
    pub(super) fn is(self, key: &str, value: &str) -> String {
        match self {
            Self::File => format!("{} = \"{value}\"", self.key(key)),
            #[cfg(feature = "flags")]
            Self::Flags => format!("{} {value}", self.key(key)),
        }
    }
}

/// Checks a draft whose sets have their members with them, and not in files.
///
/// # Errors
/// All that is wrong.
pub(crate) fn check(draft: Draft, form: Form) -> Result<Config, Vec<Complaint>> {
    let mut check = Checker { form, mark: draft.mark, complaints: Vec::new() };
    check.numbers(&draft);
    let sets = NamedSets {
        prefixes: check.sets("sets.prefixes", draft.sets.prefixes),
        ports: check.sets("sets.ports", draft.sets.ports),
    };
    let groups = check.groups(draft.upstreams);
    check.names(&draft.rules);
    let rules: Vec<_> = draft
        .rules
        .into_iter()
        .enumerate()
        .map(|(index, rule)| check.rule(index, rule, &sets, &groups))
        .collect();
    check.rules(&rules);
    if !check.complaints.is_empty() {
        return Err(check.complaints);
    }
    let total = draft.limits.udp_sessions.unwrap_or_else(default_sessions);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = draft.workers.unwrap_or(cpus).min(MAX_WORKERS as usize);
    let rules: Vec<_> = rules.into_iter().flatten().collect();
    let sessions =
        if rules.iter().any(|rule| rule.selector.reach.protocols.include(Protocol::Udp)) { total } else { 0 };
    let connections = draft.limits.connections.unwrap_or_else(|| default_connections(workers, sessions));
    let per_client = draft.limits.connections_per_client.unwrap_or_else(default_connections_per_client);
    Ok(Config {
        rules,
        name: draft.name,
        metrics: draft.metrics,
        mark: draft.mark,
        table: draft.table,
        priority: draft.priority,
        steer: draft.steer,
        on_exit: draft.on_exit,
        firewall: draft.admit.into(),
        workers,
        timeouts: draft.timeouts,
        sessions: SessionLimits {
            total,
            per_client: draft.limits.udp_sessions_per_client.unwrap_or(total.div_ceil(SHARES)).min(total),
        },
        unused_sets: sets.unused(),
        unused_upstreams: upstreams::unused(&groups),
        connections: ConnectionLimits { total: connections, per_client: per_client.min(connections) },
    })
}

/// How many UDP sessions there may be where nobody says: half of the descriptors for UDP, two for each session. The rest is
/// for connections.
pub(crate) fn default_sessions() -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    maximum.map_or(MOST_SESSIONS, |maximum| (maximum as usize / 4).clamp(1, MOST_SESSIONS))
}

/// Two descriptors for each, without those that the instance itself needs, that `status` and metrics need when all others are
/// used up, and that a quarter of the UDP sessions have.
fn default_connections(workers: usize, sessions: usize) -> usize {
    const INSTANCE: usize = 160;
    const WORKER: usize = 16;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    maximum.map_or(MOST_CONNECTIONS, |maximum| {
        let flows = (maximum as usize).saturating_sub(INSTANCE + workers * WORKER) / 2;
        flows.saturating_sub(sessions / 4).clamp(1, MOST_CONNECTIONS)
    })
}

fn default_connections_per_client() -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    maximum
        .map_or(MOST_CONNECTIONS, |maximum| maximum as usize / 2)
        .div_ceil(SHARES)
        .clamp(1, MOST_CONNECTIONS)
}

struct Checker {
    form: Form,
    mark: Mark,
    complaints: Vec<Complaint>,
}

/// The sets that rules can name.
struct NamedSets {
    prefixes: ByName<IpNet>,
    ports: ByName<std::ops::RangeInclusive<u16>>,
}

impl NamedSets {
    /// Names of those that no rule holds by now.
    fn unused(&self) -> Vec<Arc<str>> {
        fn unused<T>(sets: &ByName<T>) -> impl Iterator<Item = Arc<str>> {
            let unused = sets.values().filter(|set| Arc::strong_count(set) == 1);
            unused.map(|set| Arc::clone(&set.name))
        }
        unused(&self.prefixes).chain(unused(&self.ports)).collect()
    }
}

type ByName<T> = BTreeMap<String, Arc<NamedSet<T>>>;

impl Checker {
    fn complain(&mut self, about: impl IntoIterator<Item = Path>, text: impl Into<String>) {
        self.complaints.push(Complaint { about: about.into_iter().collect(), text: text.into() });
    }

    fn numbers(&mut self, draft: &Draft) {
        let form = self.form;
        let mut wrong = |key: &str, says: &str| {
            self.complain([Path::of(key)], format!("{} {says}", form.key(key)));
        };
        if !(1..=MAX_WORKERS as usize).contains(&draft.workers.unwrap_or(1)) {
            wrong("workers", "must be between 1 and 1024");
        }
        if matches!(draft.table, 0 | 253..=255) {
            wrong(
                "table",
                "must not be 0, 253, 254 or 255, which the kernel uses itself: choose another number",
            );
        }
        if !(1..32_766).contains(&draft.priority) {
            wrong("priority", "must be between 1 and 32765, after the kernel's table local and before main");
        }
        if !rule::KEEPALIVE.contains(&draft.timeouts.keepalive.as_secs()) {
            wrong("timeouts.keepalive", "must be between 1s and 32767s");
        }
        for (key, value) in [
            ("limits.udp_sessions", draft.limits.udp_sessions),
            ("limits.udp_sessions_per_client", draft.limits.udp_sessions_per_client),
            ("limits.connections", draft.limits.connections),
            ("limits.connections_per_client", draft.limits.connections_per_client),
        ] {
            if value == Some(0) {
                wrong(key, "must be at least 1");
            }
        }
    }

    fn sets<T: Text>(&mut self, at: &str, sets: BTreeMap<String, Members<T>>) -> ByName<T> {
        let mut by_name = BTreeMap::new();
        for (name, members) in sets {
            let at = Path::of(at).named(&name);
            let Members::Listed(items) = members else { unreachable!("files of sets are read before") };
            let mut members = Vec::with_capacity(items.len());
            for (index, item) in items.into_iter().enumerate() {
                match item {
                    Item::One(value) => members.push(value),
                    Item::Set(other) => self.complain(
                        [at.index(index)],
                        format!("a set cannot hold another one: write the members of {other}, or let rules name both"),
                    ),
                }
            }
            let set = NamedSet { name: name.as_str().into(), members };
            by_name.insert(name, Arc::new(set));
        }
        by_name
    }

    fn names(&mut self, rules: &[DraftRule]) {
        let mut names: HashMap<String, usize> = HashMap::new();
        for (index, rule) in rules.iter().enumerate() {
            let name = rule.name_at(index);
            let quoted = format!("{name:?}");
            if let Some(other) = names.insert(name, index) {
                let key = |index| Path::rule(index).key("name");
                let text = format!("{quoted} is the name of {} too: choose another", Path::rule(other));
                self.complain([key(index), key(other)], text);
            }
        }
    }

    /// What is to be said about all rules together; one that is missing was complained about already.
    fn rules(&mut self, rules: &[Option<Rule>]) {
        let all = [Path::of("rules")];
        if rules.is_empty() {
            self.complain(all.clone(), "there is no rule, so nothing would be intercepted: write [[rules]]");
        }
        if rules.len() > MAX_RULES {
            let count = rules.len();
            self.complain(
                all.clone(),
                format!("there are {count} rules, and the tables hold {MAX_RULES}: write prefixes and ports of rules that do the same into one"),
            );
        }
        let rules = || rules.iter().flatten();
        let prefixes = "prefixes";
        self.capacity(prefixes, &["from"], MOST_PREFIXES, lists(rules().map(|rule| &rule.selector.from)));
        let destinations = lists(rules().flat_map(|rule| [&rule.selector.to, &rule.selector.except]));
        self.capacity(prefixes, &["to", "except"], MOST_PREFIXES, destinations);
        let uids = rules().map(|rule| &rule.selector.uids[..]);
        self.capacity("user ids", &["uid"], MOST_SENDERS, uids);
        self.capacity("cgroups", &["cgroup"], MOST_SENDERS, rules().map(|rule| &rule.selector.cgroups[..]));
    }

    fn capacity<'a, T: Hash + Eq + 'a>(
        &mut self,
        what: &str,
        keys: &[&str],
        most: usize,
        lists: impl Iterator<Item = &'a [T]>,
    ) {
        let distinct: HashSet<&T> = lists.flatten().collect();
        if distinct.len() > most {
            let keys: Vec<_> = keys.iter().map(|key| self.form.key(key)).collect();
            let (keys, count) = (keys.join(" and "), distinct.len());
            self.complain(
                [Path::of("rules")],
                format!("{keys} hold {count} different {what}, and the tables hold {most}: use fewer, and shorter prefixes"),
            );
        }
    }
}

/// Every list once, however many rules share it.
fn lists<'a, T: 'a>(listed: impl Iterator<Item = &'a Listed<T>>) -> impl Iterator<Item = &'a [T]> {
    let mut seen = HashSet::new();
    listed.flat_map(move |listed| {
        let sets: Vec<_> = listed.sets.iter().filter(|set| seen.insert(Arc::as_ptr(set))).collect();
        iter::once(&listed.own[..]).chain(sets.into_iter().map(|set| &set.members[..]))
    })
}
