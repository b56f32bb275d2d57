//! What a configuration says that has no effect: rules that can never match, members of lists that never do, sets that
//! no rule names. None of it is a mistake for sure, and all of it may be a hole: a `reject` that never matches passes.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tproxy_common::rule::Scope;

use super::{Action, Config, Listed, Protocols, Reach, Rule, Selector};
use crate::{
    host::local_table::LocalTable,
    policy::{is_nameable, roots},
};

/// Prefixes of a list beyond which it is not asked whether another list holds all of them.
const MOST_COMPARED: usize = 1024;

/// Examples of prefixes that a remark names.
const NAMED: usize = 3;

impl Config {
    /// A line for each thing that has no effect, as far as the configuration alone tells.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        for (index, rule) in self.rules.iter().enumerate() {
            let remark = about_addresses(&rule.selector).or_else(|| {
                let before =
                    self.rules[..index].iter().find(|before| covers(&before.selector, &rule.selector))?;
                Some(format!("it can never match, since rule '{}' before it takes all of it", before.name))
            });
            remarks.extend(remark.map(|remark| format!("rule '{}': {remark}", rule.name)));
        }
        remarks.extend(
            self.unused_sets.iter().map(|name| format!("set '{name}' is never used: no rule names it")),
        );
        remarks.extend(
            self.unused_upstreams
                .iter()
                .map(|name| format!("upstream '{name}' is never used: no rule names it")),
        );
        remarks
    }

    /// A line for each address that is taken although few expect it, and that rules which do not name it leave alone.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let of_rule = |rule: &Rule| {
            let noted = rule
                .selector
                .to
                .iter()
                .filter_map(|net| Some(format!("{net} {}", why_noted(&rule.selector, net)?)));
            let noted: Vec<_> = noted.take(NAMED).collect();
            (!noted.is_empty()).then(|| format!("rule '{}' takes {}", rule.name, noted.join("; ")))
        };
        self.rules.iter().filter(|rule| rule.treatment.action != Action::Pass).filter_map(of_rule).collect()
    }

    /// The same as [`Self::remarks`], also for what depends on which addresses are this host's own; without that where they cannot be read.
    #[must_use]
    pub fn remarks_on_this_host(&self) -> Vec<String> {
        let own = LocalTable::load(self.table).map(|own| own.prefixes().collect::<Vec<_>>());
        let here = own.map(|own| self.remarks_here(&own)).unwrap_or_default();
        self.remarks().into_iter().chain(here).collect()
    }

    /// Those that depend on which addresses are this host's own.
    #[must_use]
    pub(super) fn remarks_here(&self, own: &[IpNet]) -> Vec<String> {
        let remark = |rule: &Rule| {
            Some(format!("rule '{}': {}", rule.name, about_own_addresses(&rule.selector, own)?))
        };
        self.rules
            .iter()
            .filter_map(remark)
            .chain(self.rules.iter().filter_map(|rule| about_source(rule, own)))
            .collect()
    }
}

fn about_addresses(selector: &Selector) -> Option<String> {
    for (key, empty) in [
        ("to", matches_nothing(&selector.to)),
        ("from", matches_nothing(&selector.from)),
        ("ports", matches_nothing(&selector.ports)),
    ] {
        if empty {
            return Some(format!("it can never match while the sets in its {key} have no members"));
        }
    }
    // No exception leaves nothing out; of other lists, nothing listed is any.
    if !selector.except.is_any() && is_within(&selector.to, &selector.except) {
        return Some("it can never match, since except leaves out all of its to".to_owned());
    }
    let to = Never::among(&selector.to, |net| why_never_to(selector, net));
    let from = Never::among(&selector.from, |net| why_never_from(selector, net));
    to.map(|never| never.says("to")).or_else(|| from.map(|never| never.says("from")))
}

fn about_source(rule: &Rule, own: &[IpNet]) -> Option<String> {
    let source = rule.treatment.egress.source.filter(|source| !own.iter().any(|own| own.contains(source)))?;
    let name = &rule.name;
    Some(format!(
        "rule '{name}': {source} (egress.source) is none of this host's addresses: what it selects fails until it is"
    ))
}

fn about_own_addresses(selector: &Selector, own: &[IpNet]) -> Option<String> {
    let is_own = |net: &IpNet| own.iter().any(|own| own.contains(net));
    let has_own = |net: &IpNet| own.iter().any(|own| own.contains(net) || net.contains(own));
    let not_a_client = "is this host's own, and this host is no client in this scope";
    let to = Never::among(&selector.to, |net| match selector.reach.scope {
        Scope::Inbound => (!has_own(net)).then_some("is not this host's own, as scope inbound wants"),
        Scope::Forwarded | Scope::Outbound => {
            is_own(net).then_some("is this host's own, which only scope inbound takes")
        }
    });
    let from = Never::among(&selector.from, |net| match selector.reach.scope {
        Scope::Outbound => None,
        Scope::Forwarded | Scope::Inbound => is_own(net).then_some(not_a_client),
    });
    to.map(|never| never.says("to")).or_else(|| from.map(|never| never.says("from")))
}

/// Prefixes of a list that never match, of which the rest is whether all are.
struct Never {
    examples: Vec<(IpNet, &'static str)>,
    more: usize,
    all: bool,
}

impl Never {
    fn among(listed: &Listed<IpNet>, why: impl Fn(&IpNet) -> Option<&'static str>) -> Option<Self> {
        let never: Vec<_> = listed.iter().filter_map(|net| Some((*net, why(net)?))).collect();
        let all = never.len() == listed.iter().count();
        let more = never.len().saturating_sub(NAMED);
        let examples: Vec<_> = never.into_iter().take(NAMED).collect();
        (!examples.is_empty()).then_some(Self { examples, more, all })
    }

    fn says(&self, key: &str) -> String {
        let examples: Vec<_> = self.examples.iter().map(|(net, why)| format!("{net} {why}")).collect();
        let more = if self.more > 0 { format!("; and {} more", self.more) } else { String::new() };
        let what = if self.all { "it can never match: " } else { "some of it can never match: " };
        format!("{what}{key} {}{more}", examples.join("; "))
    }
}

fn net4(a: u8, b: u8, length: u8) -> IpNet {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), length).into()
}

fn net6(first: u16, length: u8) -> IpNet {
    Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), length).into()
}

/// As the policy has it (`tproxy_common::policy::is_never_intercepted`).
fn why_special(net: &IpNet) -> Option<&'static str> {
    let unspecified = IpNet::from(IpAddr::from(Ipv6Addr::UNSPECIFIED));
    let broadcast = IpNet::from(IpAddr::from(Ipv4Addr::BROADCAST));
    [
        (net4(224, 0, 4), "is multicast, which is never intercepted"),
        (net6(0xff00, 8), "is multicast, which is never intercepted"),
        (broadcast, "is broadcast, which is never intercepted"),
        (IpNet::from(IpAddr::from(Ipv4Addr::UNSPECIFIED)), "is no address of a host, and never intercepted"),
        (unspecified, "is no address of a host, and never intercepted"),
    ]
    .into_iter()
    .find_map(|(special, why)| special.contains(net).then_some(why))
}

fn is_loopback(net: &IpNet) -> bool {
    let loopback6 = IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST));
    net4(127, 0, 8).contains(net) || loopback6.contains(net)
}

fn why_never_to(selector: &Selector, net: &IpNet) -> Option<&'static str> {
    if let Some(why) = why_special(net) {
        return Some(why);
    }
    if is_loopback(net) {
        return Some("is loopback, whose clients are on this host, and never intercepted");
    }
    if !is_nameable(net) {
        return Some("is link-local, and never intercepted unless a rule names the host itself");
    }
    let is_neighbour = net6(0xfe80, 10).contains(net);
    (is_neighbour && selector.reach.scope == Scope::Forwarded).then_some("is link-local, and never forwarded")
}

fn why_noted(selector: &Selector, net: &IpNet) -> Option<&'static str> {
    if why_never_to(selector, net).is_some() {
        return None;
    }
    if net4(240, 0, 4).contains(net) {
        return Some("(reserved: it is never routed in the Internet)");
    }
    let link_local = [net4(169, 254, 16), net6(0xfe80, 10)];
    link_local
        .into_iter()
        .any(|special| special.contains(net))
        .then_some("(link-local: a rule that does not name it never takes it)")
}

fn why_never_from(selector: &Selector, net: &IpNet) -> Option<&'static str> {
    why_special(net).or_else(|| {
        let foreign = is_loopback(net) && selector.reach.scope != Scope::Outbound;
        foreign.then_some("is loopback, and never comes from elsewhere")
    })
}

fn matches_nothing<T>(listed: &Listed<T>) -> bool {
    !listed.is_any() && listed.iter().next().is_none()
}

/// Whether `before` selects whatever `selector` does. It may say no where that takes long to find out.
fn covers(before: &Selector, selector: &Selector) -> bool {
    reaches(&before.reach, &selector.reach)
        && holds_all(&before.uids, &selector.uids)
        && holds_all(&before.cgroups, &selector.cgroups)
        && ports_hold(before, selector)
        && is_within(&selector.from, &before.from)
        && is_within(&selector.to, &before.to)
        // What both leave out is none of the matter.
        && (before.except.is_any() || before.except == selector.except)
}

fn reaches(before: &Reach, reach: &Reach) -> bool {
    before.scope == reach.scope
        && (before.protocols == reach.protocols || before.protocols == Protocols::Both)
        && holds_all(&before.interfaces, &reach.interfaces)
}

/// Nothing listed is any.
fn holds_all<T: PartialEq>(list: &[T], other: &[T]) -> bool {
    list.is_empty() || !other.is_empty() && other.iter().all(|one| list.contains(one))
}

fn ports_hold(before: &Selector, selector: &Selector) -> bool {
    let holds = |ports: &RangeInclusive<u16>| {
        before.ports.iter().any(|held| held.contains(ports.start()) && held.contains(ports.end()))
    };
    before.ports.is_any() || !selector.ports.is_any() && selector.ports.iter().all(holds)
}

/// Whether each address of `inner` is in `outer`; nothing listed is any.
fn is_within(inner: &Listed<IpNet>, outer: &Listed<IpNet>) -> bool {
    let all = |listed: &Listed<IpNet>| -> Vec<IpNet> {
        if listed.is_any() { roots().to_vec() } else { listed.iter().copied().collect() }
    };
    let (inner, outer) = (all(inner), all(outer));
    if inner.len() > MOST_COMPARED || outer.len() > MOST_COMPARED {
        return inner == outer;
    }
    let outer = IpNet::aggregate(&outer);
    inner.iter().all(|net| outer.iter().any(|outer| outer.contains(net)))
}
