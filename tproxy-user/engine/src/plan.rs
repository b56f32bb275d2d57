//! Which hooks of which interfaces the rules need, given the interfaces there are. Pure: the instance carries it out,
//! and makes it anew whenever interfaces or routes change.

use std::collections::{BTreeMap, BTreeSet};

use tproxy_common::{flow::Protocol, rule::Scope};

use crate::{
    config::{Action, Claim, Reach},
    datapath::Attachment,
    family::Family,
    host::{
        Change, Direction, HostError,
        links::{Layer, Link},
        policy::Common,
        sysctl::Sysctl,
    },
    pattern,
};

/// So many interfaces have an `ip rule` each; for more there are common ones, which every route look-up of the host has to
/// go through too.
const RULES_EACH: usize = 3;

/// What there is at the moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// All interfaces.
    pub links: Vec<Link>,
    /// Indices of those with a default or connected route, where a rule asks for them ([`follows_routes`]).
    pub routed: BTreeSet<u32>,
    /// The families that `lo` speaks.
    pub families: Vec<Family>,
}

/// Whether one of the rules is about the interfaces that have routes, whichever these are.
pub fn follows_routes<'a>(rules: impl IntoIterator<Item = &'a Reach>) -> bool {
    rules.into_iter().any(|reach| reach.scope == Scope::Outbound && reach.interfaces.is_empty())
}

/// What the rules need of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// tc hooks, by interface index.
    pub hooks: BTreeSet<(u32, Direction)>,
    /// Those of them without which every flow is taken all the same: there it is only seen what this host says to clients of
    /// shorter ways, or connections for this host are accepted sooner.
    pub dispensable: BTreeSet<(u32, Direction)>,
    /// Names of the interfaces whose steered packets policy routing must deliver locally.
    pub delivering: BTreeSet<String>,
    /// sysctls of `lo` that redirected packets need.
    pub loopback: BTreeSet<LoopbackSysctl>,
}

impl Plan {
    /// The changes of the host that it asks for, in the order in which they are to be made.
    ///
    /// # Errors
    /// Never, in fact: the names are those of the kernel.
    pub fn changes(
        &self,
        surroundings: &Surroundings,
        attachment: Attachment,
        landing: LandingMark,
    ) -> Result<Vec<Change>, HostError> {
        let mut changes = Vec::new();
        let apart = landing == LandingMark::Own;
        let delivering: Vec<_> = self.delivering.iter().filter(|iif| !apart || *iif != "lo").collect();
        for family in surroundings.families.iter().copied() {
            changes.push(Change::LocalRoute { family });
            if apart {
                changes.push(Change::CommonRule { family, rule: Common::OnLoopback });
            }
            if delivering.len() <= RULES_EACH {
                let each = delivering.iter().map(|iif| Change::Rule { family, iif: (*iif).clone() });
                changes.extend(each);
                continue;
            }
            let common: &[Common] = if delivering.iter().any(|iif| *iif == "lo") {
                &[Common::All]
            } else {
                &[Common::Landing, Common::PastLoopback, Common::All]
            };
            changes.extend(common.iter().map(|rule| Change::CommonRule { family, rule: *rule }));
        }
        for sysctl in &self.loopback {
            let sysctl = Sysctl::new("lo", Family::V4, sysctl.key())?;
            changes.push(Change::Sysctl { sysctl, value: "1".into() });
        }
        if attachment == Attachment::Clsact {
            let links: BTreeMap<u32, &Link> =
                surroundings.links.iter().map(|link| (link.index, link)).collect();
            changes.extend(self.hooks.iter().filter_map(|(index, direction)| {
                let interface = links.get(index)?.name.clone();
                Some(Change::TcFilter { interface, index: *index, direction: *direction })
            }));
        }
        Ok(changes)
    }
}

/// Which mark packets bear where they land on `lo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LandingMark {
    /// That of all that is steered.
    Steer,
    /// One of their own: beside other interfaces under `src_valid_mark`, where the sender of a packet is looked for by its
    /// mark, as if it came from `lo` (`fib_validate_source()`).
    Own,
}

/// A sysctl of `lo`, to be 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoopbackSysctl {
    /// Packets with a source address of the host's own may arrive.
    AcceptLocal,
    /// Packets with a source address in 127.0.0.0/8 may be for other addresses.
    RouteLocalnet,
}

impl LoopbackSysctl {
    /// Its key below `net.ipv4.conf.lo`.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::AcceptLocal => "accept_local",
            Self::RouteLocalnet => "route_localnet",
        }
    }
}

impl Surroundings {
    /// Interfaces a rule is limited to at the moment; `None` is any. An interface that is named but absent is left out.
    #[must_use]
    pub fn limit(&self, reach: &Reach) -> Option<BTreeSet<u32>> {
        match reach.scope {
            Scope::Inbound => None,
            Scope::Outbound if reach.interfaces.is_empty() => {
                let routed = self.links.iter().filter(|link| self.routed.contains(&link.index));
                Some(routed.filter(|link| is_hookable(link)).map(|link| link.index).collect())
            }
            Scope::Forwarded | Scope::Outbound => {
                let named = self.links.iter().filter(|link| is_named(link, reach) && link.master.is_none());
                Some(named.map(|link| link.index).collect())
            }
        }
    }

    /// What a rule names that there is not, patterns included.
    pub fn absent<'a>(&self, reach: &'a Reach) -> impl Iterator<Item = &'a str> {
        let names = |name: &&String| !self.links.iter().any(|link| names(name, link));
        reach.interfaces.iter().filter(names).map(String::as_str)
    }

    /// An interface whose packets are somebody else's, and which a rule names all the same. `addressed` are the interfaces
    /// that have addresses.
    #[must_use]
    pub fn misnamed(&self, reach: &Reach, addressed: &BTreeSet<u32>) -> Option<Misnamed> {
        // What a pattern matches beside others is nobody's mistake.
        let named = self.links.iter().filter(|link| reach.interfaces.contains(&link.name));
        named.into_iter().find_map(|link| {
            let port = link.name.clone();
            if let Some(master) = link.master {
                return Some(Misnamed::Port { port, master: self.name_of(master) });
            }
            let parts = self.links.iter().filter(|part| part.parent == Some(link.index));
            let parts: Vec<_> = parts.map(|part| part.name.clone()).collect();
            let is_bare = !parts.is_empty() && !addressed.contains(&link.index);
            is_bare.then_some(Misnamed::Parent { parent: port, parts })
        })
    }

    /// What an interface is called, or its number where it is gone.
    #[must_use]
    pub fn name_of(&self, index: u32) -> String {
        let found = self.links.iter().find(|link| link.index == index);
        found.map_or_else(|| format!("interface {index}"), |link| link.name.clone())
    }

    /// Whether an interface that a rule names has parts.
    #[must_use]
    pub fn names_parents<'a>(&self, rules: impl Iterator<Item = &'a Reach> + Clone) -> bool {
        let is_parent = |link: &Link| self.links.iter().any(|part| part.parent == Some(link.index));
        let is_named = |link: &Link| rules.clone().any(|reach| reach.interfaces.contains(&link.name));
        self.links.iter().any(|link| is_named(link) && is_parent(link))
    }

    /// What `rules` need.
    #[must_use]
    pub fn plan<'a>(&self, rules: impl IntoIterator<Item: Into<Claim<'a>>>) -> Plan {
        let mut hooks = BTreeSet::new();
        // Where UDP flows are seen that leave, or in scope `outbound` arrive, on their own, lest their replies be taken for
        // new ones.
        let mut remembering = BTreeSet::new();
        let mut dispensable = BTreeSet::new();
        let mut loopback = BTreeSet::new();
        let (mut holds, mut holds_for_others) = (false, false);
        for claim in rules.into_iter().map(Into::into) {
            let Claim { reach, treatment } = claim;
            holds |= claim.may_hold();
            holds_for_others |= claim.may_hold() && reach.scope != Scope::Inbound;
            let limit = self.limit(reach).unwrap_or_default();
            match reach.scope {
                Scope::Forwarded => {
                    hooks.extend(limit.iter().map(|index| (*index, Direction::Ingress)));
                    let sides = limit.into_iter().map(|index| (index, Direction::Egress));
                    if reach.protocols.include(Protocol::Udp) {
                        remembering.extend(sides);
                    } else {
                        dispensable.extend(sides);
                    }
                }
                Scope::Outbound => {
                    // Only there do packets with a source address of `lo` leave.
                    if limit.contains(&self.loopback()) {
                        loopback.insert(LoopbackSysctl::RouteLocalnet);
                    }
                    if reach.protocols.include(Protocol::Udp) {
                        let arriving = limit.iter().filter(|index| **index != self.loopback());
                        remembering.extend(arriving.map(|index| (*index, Direction::Ingress)));
                    }
                    hooks.extend(limit.into_iter().map(|index| (index, Direction::Egress)));
                }
                Scope::Inbound if reach.protocols.include(Protocol::Udp) => {
                    remembering.extend(self.hookable().map(|link| (link.index, Direction::Egress)));
                }
                Scope::Inbound => {}
            }
            hooks.extend(self.return_leg(claim));
            if treatment.is_spoofed() && reach.scope == Scope::Forwarded {
                // Where it is seen what NAT of this host makes of the client's address.
                remembering.extend(self.hookable().map(|link| (link.index, Direction::Egress)));
            }
        }
        // What leaves and is ours comes back by `lo`, with the source address of this host.
        if hooks.iter().any(|(_, hook)| *hook == Direction::Egress) {
            hooks.insert((self.loopback(), Direction::Ingress));
            loopback.insert(LoopbackSysctl::AcceptLocal);
        }
        hooks.extend(remembering);
        dispensable.retain(|hook| hooks.insert(*hook));
        let names: BTreeMap<u32, &str> = self.links.iter().map(|link| (link.index, &*link.name)).collect();
        let delivering = hooks
            .iter()
            .filter(|(_, hook)| *hook == Direction::Ingress)
            .filter_map(|(index, _)| names.get(index).map(|name| (*name).to_owned()))
            .collect();
        // First packets that were held come in once more by way of `lo`, and are not delivered from there. Without the hook
        // those for this host come in by `lo` itself, or when they are sent again.
        let by_loopback = (self.loopback(), Direction::Ingress);
        if holds && hooks.insert(by_loopback) && !holds_for_others {
            dispensable.insert(by_loopback);
        }
        Plan { hooks, dispensable, delivering, loopback }
    }

    /// Where the replies to a spoofed upstream socket can pass: they bear the client's address, and only a lookup of
    /// their 4-tuple tells that they are ours. From a server they arrive by any interface; from an application of this
    /// host they leave by any.
    fn return_leg(&self, Claim { reach, treatment }: Claim<'_>) -> impl Iterator<Item = (u32, Direction)> {
        let sides: &[Direction] = match (&treatment.action, reach.scope) {
            _ if !treatment.is_spoofed() => &[],
            // An upstream that is given may be anywhere.
            (Action::Upstream(_), _) => &[Direction::Ingress, Direction::Egress],
            (_, Scope::Forwarded) => &[Direction::Ingress],
            (_, Scope::Outbound | Scope::Inbound) => &[Direction::Egress],
        };
        self.hookable().flat_map(|link| sides.iter().map(|side| (link.index, *side)))
    }

    fn hookable(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|link| is_hookable(link))
    }

    fn loopback(&self) -> u32 {
        self.links.iter().find(|link| link.layer == Layer::Loopback).map_or(1, |link| link.index)
    }
}

/// Where routing sees packets arrive or leave.
fn is_hookable(link: &Link) -> bool {
    matches!(link.layer, Layer::Ethernet | Layer::Ip) && link.master.is_none()
}

fn is_named(link: &Link, reach: &Reach) -> bool {
    reach.interfaces.iter().any(|name| names(name, link))
}

/// Whether what a rule says is the interface; no pattern is `lo`.
pub fn names(name: &str, link: &Link) -> bool {
    name == link.name || (link.layer != Layer::Loopback && pattern::matches(name, &link.name))
}

/// An interface that a rule names by mistake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misnamed {
    /// A port of a bridge, bond or team.
    #[error("'{port}' is a port of '{master}', and packets arrive on that one: name '{master}'")]
    Port {
        /// What is named.
        port: String,
        /// What is meant.
        master: String,
    },
    /// An interface without an address, whose parts are what packets arrive on.
    #[error(
        "'{parent}' has no address, and packets arrive on what it is divided into: name {}, or give '{parent}' an address",
        parts.join(" or ")
    )]
    Parent {
        /// What is named.
        parent: String,
        /// What may be meant.
        parts: Vec<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Accept, Protocols, Rule, Source, Treatment};
    use Direction::{Egress, Ingress};

    fn link(index: u32, name: &str, layer: Layer) -> Link {
        Link { index, name: name.into(), layer, up: true, master: None, parent: None }
    }

    fn surroundings() -> Surroundings {
        let links = vec![
            link(1, "lo", Layer::Loopback),
            link(2, "eth0", Layer::Ethernet),
            link(3, "tun0", Layer::Ip),
            link(4, "can0", Layer::Other),
        ];
        Surroundings { links, routed: [2, 3].into(), families: Family::BOTH.into() }
    }

    fn rule(scope: Scope, interfaces: &[&str], source: Source) -> Rule {
        let interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
        let reach = Reach { scope, protocols: Protocols::Tcp, interfaces };
        Rule::new("r", reach, Treatment { source, accept: Accept::AtOnce, ..Action::Direct.into() })
    }

    fn hooks(rule: Rule) -> Vec<(u32, Direction)> {
        surroundings().plan(&[rule]).hooks.into_iter().collect()
    }

    /// The changes but for those of IPv6.
    fn changes(delivering: &[&str], landing: LandingMark) -> Vec<Change> {
        let delivering = delivering.iter().map(|name| (*name).to_owned()).collect();
        let plan = Plan { delivering, loopback: [LoopbackSysctl::AcceptLocal].into(), ..Plan::default() };
        let surroundings = Surroundings { families: vec![Family::V4], ..surroundings() };
        plan.changes(&surroundings, Attachment::Tcx, landing).unwrap()
    }

    #[test]
    fn a_few_interfaces_have_a_rule_each_and_many_have_common_ones() {
        let family = Family::V4;
        let sysctl = Sysctl::new("lo", family, "accept_local").unwrap();
        let around = |rules: Vec<Change>| {
            let route = [Change::LocalRoute { family }];
            let sysctl = [Change::Sysctl { sysctl: sysctl.clone(), value: "1".into() }];
            route.into_iter().chain(rules).chain(sysctl).collect::<Vec<_>>()
        };
        let each = |names: &[&str]| {
            around(names.iter().map(|iif| Change::Rule { family, iif: (*iif).into() }).collect())
        };
        let common = |rules: &[Common]| {
            around(rules.iter().map(|rule| Change::CommonRule { family, rule: *rule }).collect())
        };
        let [steer, own] = [LandingMark::Steer, LandingMark::Own];
        assert_eq!(changes(&[], steer), each(&[]));
        assert_eq!(changes(&["a", "b", "lo"], steer), each(&["a", "b", "lo"]));
        // Where the rule for what leaves leads has to be there before it, and it has to come before the one for all.
        let past_loopback = common(&[Common::Landing, Common::PastLoopback, Common::All]);
        assert_eq!(changes(&["a", "b", "c", "d"], steer), past_loopback);
        assert_eq!(changes(&["a", "b", "c", "lo"], steer), common(&[Common::All]));
        let apart = Change::CommonRule { family, rule: Common::OnLoopback };
        let beside = ["a", "b"].map(|iif| Change::Rule { family, iif: iif.into() });
        assert_eq!(changes(&["a", "b", "lo"], own), around([apart].into_iter().chain(beside).collect()));
        let all = [Common::OnLoopback, Common::Landing, Common::PastLoopback, Common::All];
        assert_eq!(changes(&["a", "b", "c", "d", "lo"], own), common(&all));
    }

    #[test]
    fn patterns_name_what_is_there_but_neither_lo_nor_ports() {
        let mut surroundings = surroundings();
        let hooks = |surroundings: &Surroundings, name: &str| -> Vec<_> {
            let hooks = surroundings.plan(&[rule(Scope::Forwarded, &[name], Source::Host)]).hooks;
            hooks.into_iter().filter(|(_, hook)| *hook == Ingress).collect()
        };
        assert_eq!(hooks(&surroundings, "*0"), [(2, Ingress), (3, Ingress), (4, Ingress)]);
        assert_eq!(hooks(&surroundings, "eth?"), [(2, Ingress)]);
        surroundings.links[1].master = Some(3);
        assert_eq!(hooks(&surroundings, "eth?"), []);
        assert_eq!(hooks(&surroundings, "eth0"), []);
        let named = rule(Scope::Forwarded, &["eth?", "wg*", "tun0", "br0"], Source::Host);
        assert_eq!(surroundings.absent(&named.selector.reach).collect::<Vec<_>>(), ["wg*", "br0"]);
    }

    #[test]
    fn what_is_named_by_mistake_is_told_with_what_is_meant() {
        let mut surroundings = surroundings();
        let misnamed = |surroundings: &Surroundings, name: &str, addressed: &[u32]| {
            let rule = rule(Scope::Forwarded, &[name], Source::Host);
            surroundings.misnamed(&rule.selector.reach, &addressed.iter().copied().collect())
        };
        assert_eq!(misnamed(&surroundings, "eth0", &[]), None);
        surroundings.links.push(Link { parent: Some(2), ..link(5, "eth0.7", Layer::Ethernet) });
        let parent = misnamed(&surroundings, "eth0", &[]).unwrap();
        assert!(parent.to_string().contains("eth0.7"), "{parent}");
        assert_eq!(misnamed(&surroundings, "eth0", &[2]), None, "it has packets of its own");
        assert_eq!(misnamed(&surroundings, "eth0.7", &[]), None);
        surroundings.links[1].master = Some(3);
        let port = misnamed(&surroundings, "eth0", &[2]).unwrap();
        assert!(port.to_string().contains("name 'tun0'"), "{port}");
        assert_eq!(misnamed(&surroundings, "eth*", &[]), None, "a pattern means others");
    }

    #[test]
    fn routes_matter_only_to_rules_that_name_no_interface() {
        let follows = |scope, interfaces: &[&str]| {
            follows_routes([&rule(scope, interfaces, Source::Host).selector.reach])
        };
        assert!(follows(Scope::Outbound, &[]));
        assert!(!follows(Scope::Outbound, &["eth0"]));
        assert!(!follows(Scope::Inbound, &[]));
    }

    #[test]
    fn forwarded_needs_ingress_where_named_and_everywhere_for_spoofed_replies() {
        let mut named = rule(Scope::Forwarded, &["eth0", "gone"], Source::Host);
        assert_eq!(hooks(named.clone()), [(2, Ingress), (2, Egress)]);
        let dispensable = |rule: &Rule| surroundings().plan([rule]).dispensable;
        assert_eq!(dispensable(&named), [(2, Egress)].into());
        named.treatment.accept = Accept::Auto;
        let plan = surroundings().plan(&[named.clone()]);
        assert_eq!(
            plan.hooks,
            [(1, Ingress), (2, Ingress), (2, Egress)].into(),
            "what was held comes in by way of lo"
        );
        assert_eq!(plan.delivering, ["eth0".to_owned()].into(), "and is not delivered from there");
        named.selector.reach.protocols = Protocols::Both;
        assert_eq!(dispensable(&named), [].into());
        let both = [(2, Ingress), (2, Egress), (3, Ingress), (3, Egress)];
        assert_eq!(
            hooks(rule(Scope::Forwarded, &["eth0"], Source::Client)),
            both,
            "NAT is seen where packets leave"
        );
    }

    #[test]
    fn outbound_follows_routes_or_names_and_comes_back_by_lo() {
        assert_eq!(hooks(rule(Scope::Outbound, &[], Source::Host)), [(1, Ingress), (2, Egress), (3, Egress)]);
        let classic = surroundings().plan(&[rule(Scope::Outbound, &["lo"], Source::Host)]);
        assert_eq!(classic.hooks, [(1, Ingress), (1, Egress)].into());
        assert_eq!(classic.loopback, [LoopbackSysctl::AcceptLocal, LoopbackSysctl::RouteLocalnet].into());
        assert_eq!(classic.delivering, ["lo".to_owned()].into());
    }

    #[test]
    fn an_upstream_that_is_given_may_answer_from_anywhere() {
        let upstream = |scope| {
            let action = Action::Upstream("192.0.2.1:1".parse().unwrap());
            let mut rule = rule(scope, &["eth0"], Source::Client);
            rule.treatment.action = action;
            hooks(rule)
        };
        let everywhere = [(1, Ingress), (2, Ingress), (2, Egress), (3, Ingress), (3, Egress)];
        assert_eq!(upstream(Scope::Forwarded), everywhere);
        assert_eq!(upstream(Scope::Inbound), everywhere);
    }

    #[test]
    fn udp_flows_that_leave_are_seen() {
        let both = |scope, interfaces| {
            let mut rule = rule(scope, interfaces, Source::Host);
            rule.selector.reach.protocols = Protocols::Both;
            hooks(rule)
        };
        assert_eq!(both(Scope::Forwarded, &["eth0"]), [(2, Ingress), (2, Egress)]);
        assert_eq!(both(Scope::Inbound, &[]), [(2, Egress), (3, Egress)]);
        assert_eq!(
            both(Scope::Outbound, &[]),
            [(1, Ingress), (2, Ingress), (2, Egress), (3, Ingress), (3, Egress)]
        );
    }

    #[test]
    fn inbound_needs_tc_only_for_spoofed_replies() {
        assert_eq!(hooks(rule(Scope::Inbound, &[], Source::Host)), []);
        assert_eq!(
            hooks(rule(Scope::Inbound, &[], Source::Client)),
            [(1, Ingress), (2, Egress), (3, Egress)]
        );
        let mut holding = rule(Scope::Inbound, &[], Source::Host);
        holding.treatment.accept = Accept::Auto;
        let plan = surroundings().plan(&[holding]);
        assert_eq!((plan.hooks, plan.delivering), ([(1, Ingress)].into(), [].into()));
        assert_eq!(plan.dispensable, [(1, Ingress)].into());
    }
}
