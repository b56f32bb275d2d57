//! The policy, walked through: what each table says on the way to the verdict that `decide` gives.

use tproxy_common::{
    policy::{Lookups, decide, is_never_intercepted},
    rule::{ActionKind, MAX_RULES, RuleIndex, RuleSet, Scope},
    verdict::Verdict,
};

use super::{Case, ExplainStep};

/// Ranges of rules that are written out.
const SHOWN: usize = 8;

/// The steps, the verdict, and the rule that it comes from. `name` knows rules by name.
pub(super) fn walk<L: Lookups>(
    case: &Case,
    tables: &L,
    name: &dyn Fn(RuleIndex) -> Option<String>,
) -> (Vec<ExplainStep>, Verdict, Option<RuleIndex>) {
    let verdict = decide(case.scope, &case.flow, tables);
    let mut steps = Vec::new();
    let mut step = |step, found: String| steps.push(ExplainStep { step, found });
    let (source, destination) = (case.source.ip(), case.destination.ip());
    if is_never_intercepted(case.scope, &case.flow) {
        step("never", "multicast, broadcast, unspecified, port 0 or DHCP: no rule is asked".into());
        return (steps, verdict, None);
    }
    step("never", "neither multicast nor broadcast, nor port 0, nor DHCP: the rules may be asked".into());
    let tuple = &case.flow.tuple;
    let to_host = tables.is_host_address(&tuple.dst);
    let from_host = tables.is_host_address(&tuple.src);
    let whose = |is_host| if is_host { "this host's" } else { "not this host's" };
    step("host", format!("{destination} is {}, {source} is {}", whose(to_host), whose(from_host)));
    let may_be_published =
        case.scope == Scope::Forwarded && to_host && tables.is_publishing(case.flow.protocol);
    let is_about = match case.scope {
        Scope::Forwarded => !to_host || may_be_published,
        Scope::Outbound => !to_host,
        Scope::Inbound => to_host && !from_host,
    };
    if !is_about {
        step(
            "host",
            format!("scope {} is about others: no rule is asked", super::FlowScope::from(case.scope).name()),
        );
        return (steps, verdict, None);
    }
    if may_be_published {
        step(
            "nat",
            "a port that NAT of this host publishes for somebody else is what the rules say; any other passes".into(),
        );
    }
    let port = case.destination.port();
    let mut sets = vec![
        ("rules", "of this scope and protocol".to_owned(), tables.by_scope(case.scope, case.flow.protocol)),
        ("source", source.to_string(), tables.by_source(&tuple.src)),
        ("destination", destination.to_string(), tables.by_destination(&tuple.dst)),
        ("port", port.to_string(), tables.by_port(port)),
    ];
    if let Some(link) = &case.link {
        sets.push(("interface", link.name.clone(), tables.by_interface(link.index)));
    }
    if case.scope == Scope::Outbound {
        sets.push(("uid", case.flow.uid.to_string(), tables.by_uid(case.flow.uid)));
        let sender = if case.sender.is_empty() { "the root's" } else { "the sender's" };
        sets.push(("cgroup", sender.to_owned(), tables.by_cgroup()));
    }
    for (dimension, value, set) in &sets {
        step(dimension, format!("{value}: {}", set.map_or_else(|| "no rule".to_owned(), listed)));
    }
    let in_all = |rule: &RuleIndex| sets.iter().all(|(.., set)| set.is_some_and(|set| set.contains(*rule)));
    let rule = (0..MAX_RULES as RuleIndex).find(in_all);
    step(
        "match",
        match rule {
            None => "no rule is in all of them".to_owned(),
            Some(rule) => {
                let name = name(rule).map(|name| format!(" '{name}'")).unwrap_or_default();
                format!("rule {rule}{name} is the first in all of them: {}", word(tables.action(rule)))
            }
        },
    );
    (steps, verdict, rule)
}

const fn word(action: ActionKind) -> &'static str {
    match action {
        ActionKind::Steer | ActionKind::SteerReached | ActionKind::SteerConnected => "steer",
        ActionKind::Reject => "reject",
        ActionKind::Drop => "drop",
        ActionKind::Pass => "pass",
    }
}

/// `rules 0-2, 7`
fn listed(set: &RuleSet) -> String {
    let mut ranges: Vec<(RuleIndex, RuleIndex)> = Vec::new();
    for rule in (0..MAX_RULES as RuleIndex).filter(|rule| set.contains(*rule)) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == rule => *last = rule,
            _ => ranges.push((rule, rule)),
        }
    }
    let written = ranges.iter().take(SHOWN).map(|(first, last)| match last - first {
        0 => first.to_string(),
        _ => format!("{first}-{last}"),
    });
    let written = written.collect::<Vec<_>>().join(", ");
    match ranges.len() {
        0 => "no rule".to_owned(),
        1 if ranges[0].0 == ranges[0].1 => format!("rule {written}"),
        1..=SHOWN => format!("rules {written}"),
        more => format!("rules {written} and {} more ranges", more - SHOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_written_as_ranges() {
        let set = |rules: &[RuleIndex]| {
            listed(&rules.iter().fold(RuleSet::EMPTY, |mut set, rule| {
                set.insert(*rule);
                set
            }))
        };
        assert_eq!(set(&[]), "no rule");
        assert_eq!(set(&[0, 1, 2, 7, 4095]), "rules 0-2, 7, 4095");
        let even: Vec<_> = (0..20).map(|half| half * 2).collect();
        assert_eq!(set(&even), "rules 0, 2, 4, 6, 8, 10, 12, 14 and 12 more ranges");
    }
}
