//! Which hooks of which interfaces the rules need, given the interfaces there are. Pure: the instance carries it out,
//! and makes it anew whenever interfaces or routes change.

use std::collections::{BTreeMap, BTreeSet};

use tproxy_common::{flow::Protocol, rule::Scope};

use crate::{
    config::{Action, Rule},
    host::{
        Direction,
        links::{Layer, Link},
    },
};

/// What there is at the moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// All interfaces.
    pub links: Vec<Link>,
    /// Indices of those with a default or connected route.
    pub routed: BTreeSet<u32>,
}

/// What the rules need of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// tc hooks, by interface index.
    pub hooks: BTreeSet<(u32, Direction)>,
    /// Names of the interfaces whose steered packets policy routing must deliver locally.
    pub delivering: BTreeSet<String>,
    /// sysctls of `lo` that redirected packets need.
    pub loopback: BTreeSet<LoopbackSysctl>,
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
    pub fn limit(&self, rule: &Rule) -> Option<BTreeSet<u32>> {
        match rule.scope {
            Scope::Inbound => None,
            Scope::Outbound if rule.interfaces.is_empty() => {
                let routed = self.links.iter().filter(|link| self.routed.contains(&link.index));
                Some(routed.filter(|link| is_hookable(link)).map(|link| link.index).collect())
            }
            Scope::Forwarded | Scope::Outbound => {
                let named = self.links.iter().filter(|link| rule.interfaces.contains(&link.name));
                Some(named.map(|link| link.index).collect())
            }
        }
    }

    /// What `rules` need.
    #[must_use]
    pub fn plan<'a>(&self, rules: impl IntoIterator<Item = &'a Rule>) -> Plan {
        let mut hooks = BTreeSet::new();
        // Where UDP flows are seen that leave, or in scope `outbound` arrive, on their own, lest their replies be taken for
        // new ones.
        let mut remembering = BTreeSet::new();
        let mut loopback = BTreeSet::new();
        for rule in rules {
            let limit = self.limit(rule).unwrap_or_default();
            match rule.scope {
                Scope::Forwarded => {
                    hooks.extend(limit.iter().map(|index| (*index, Direction::Ingress)));
                    if rule.protocols.include(Protocol::Udp) {
                        remembering.extend(limit.into_iter().map(|index| (index, Direction::Egress)));
                    }
                }
                Scope::Outbound => {
                    // Only there do packets with a source address of `lo` leave.
                    if limit.contains(&self.loopback()) {
                        loopback.insert(LoopbackSysctl::RouteLocalnet);
                    }
                    if rule.protocols.include(Protocol::Udp) {
                        let arriving = limit.iter().filter(|index| **index != self.loopback());
                        remembering.extend(arriving.map(|index| (*index, Direction::Ingress)));
                    }
                    hooks.extend(limit.into_iter().map(|index| (index, Direction::Egress)));
                }
                Scope::Inbound if rule.protocols.include(Protocol::Udp) => {
                    remembering.extend(self.hookable().map(|link| (link.index, Direction::Egress)));
                }
                Scope::Inbound => {}
            }
            hooks.extend(self.return_leg(rule));
        }
        // What leaves and is ours comes back by `lo`, with the source address of this host.
        if hooks.iter().any(|(_, hook)| *hook == Direction::Egress) {
            hooks.insert((self.loopback(), Direction::Ingress));
            loopback.insert(LoopbackSysctl::AcceptLocal);
        }
        hooks.extend(remembering);
        let names: BTreeMap<u32, &str> = self.links.iter().map(|link| (link.index, &*link.name)).collect();
        let delivering = hooks
            .iter()
            .filter(|(_, hook)| *hook == Direction::Ingress)
            .filter_map(|(index, _)| names.get(index).map(|name| (*name).to_owned()))
            .collect();
        Plan { hooks, delivering, loopback }
    }

    /// Where the replies to a spoofed upstream socket can pass: they bear the client's address, and only a lookup of
    /// their 4-tuple tells that they are ours. From a server they arrive by any interface; from an application of this
    /// host they leave by any.
    fn return_leg(&self, rule: &Rule) -> impl Iterator<Item = (u32, Direction)> {
        let sides: &[Direction] = match (&rule.action, rule.scope) {
            _ if !rule.is_spoofed() => &[],
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

fn is_hookable(link: &Link) -> bool {
    matches!(link.layer, Layer::Ethernet | Layer::Ip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Protocols, Source};
    use Direction::{Egress, Ingress};

    fn link(index: u32, name: &str, layer: Layer) -> Link {
        Link { index, name: name.into(), layer, up: true }
    }

    fn surroundings() -> Surroundings {
        let links = vec![
            link(1, "lo", Layer::Loopback),
            link(2, "eth0", Layer::Ethernet),
            link(3, "tun0", Layer::Ip),
            link(4, "can0", Layer::Other),
        ];
        Surroundings { links, routed: [2, 3].into() }
    }

    fn rule(scope: Scope, interfaces: &[&str], source: Source) -> Rule {
        Rule {
            interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(),
            source,
            protocols: Protocols::Tcp,
            ..Rule::new("r", scope, Action::Direct)
        }
    }

    fn hooks(rule: Rule) -> Vec<(u32, Direction)> {
        surroundings().plan(&[rule]).hooks.into_iter().collect()
    }

    #[test]
    fn forwarded_needs_ingress_where_named_and_everywhere_for_spoofed_replies() {
        assert_eq!(hooks(rule(Scope::Forwarded, &["eth0", "gone"], Source::Host)), [(2, Ingress)]);
        assert_eq!(hooks(rule(Scope::Forwarded, &["eth0"], Source::Client)), [(2, Ingress), (3, Ingress)]);
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
            hooks(Rule { action, ..rule(scope, &["eth0"], Source::Client) })
        };
        let everywhere = [(1, Ingress), (2, Ingress), (2, Egress), (3, Ingress), (3, Egress)];
        assert_eq!(upstream(Scope::Forwarded), everywhere);
        assert_eq!(upstream(Scope::Inbound), everywhere);
    }

    #[test]
    fn udp_flows_that_leave_are_seen() {
        let both = |scope, interfaces| {
            hooks(Rule { protocols: Protocols::Both, ..rule(scope, interfaces, Source::Host) })
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
    }
}
