//! How large the maps are made. The kernel takes the memory of those that the programs fill when it makes them, so they are
//! as large as what was asked for needs, and no larger.

use aya::EbpfLoader;
use tproxy_common::{
    abi::{self, map},
    capacity,
    flow::Protocol,
};

use crate::config::{Claim, Config, Reach, Scope, default_sessions};

/// Entries of the maps that differ between instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Rule sets that there is room for in each slot.
    pub(super) sets: u32,
    decisions: u32,
    memory: u32,
    host_flows: u32,
    fragments: u32,
    /// What NAT makes of the addresses of spoofed upstream sockets, and of what clients ask for.
    translations: u32,
    /// First packets that are held.
    held: u32,
    /// Destinations that were reached by connections whose first packets were held.
    reached: u32,
    /// Bytes of the way that those take to user space.
    syns: u32,
}

impl Sizes {
    /// What does for a host, two megabytes for each of the larger ones. The kernel hands out places by the hundred to each
    /// CPU (`LOCAL_FREE_TARGET`), so that much smaller ones would forget before they are full.
    pub const LEAST: Self = Self {
        sets: capacity::SETS,
        decisions: capacity::DECISIONS,
        memory: capacity::MEMORY,
        host_flows: capacity::FEW_HOST_FLOWS,
        fragments: capacity::FRAGMENTS,
        translations: capacity::FEW_TRANSLATIONS,
        held: capacity::FEW_HELD,
        reached: capacity::FEW_REACHED,
        syns: capacity::FEW_SYNS,
    };

    /// What this configuration asks for, whose rules make `sets` rule sets.
    #[must_use]
    pub fn of(config: &Config, sets: usize) -> Self {
        // Most sessions are two flows: the client's, and where an application or a server answers, its own.
        let sessions = Some(config.sessions.total).filter(|total| *total != default_sessions());
        let connections: usize =
            config.rules.iter().filter_map(|rule| rule.treatment.limits.connections).map(usize::from).sum();
        let claims = || config.rules.iter().map(Claim::from);
        let translates =
            claims().any(|claim| claim.treatment.is_spoofed() || claim.reach.scope == Scope::Forwarded);
        let holds = claims().any(Claim::may_hold);
        let hosts = claims().any(|Claim { reach: Reach { scope, protocols, .. }, .. }| {
            *scope != Scope::Forwarded && protocols.include(Protocol::Udp)
        });
        let flows = entries(2 * sessions.unwrap_or_default());
        let least = Self::LEAST;
        Self {
            // Twice what is needed now: interfaces may come, and so may other rules.
            sets: entries(2 * sets).max(Self::LEAST.sets),
            decisions: entries(connections).clamp(Self::LEAST.decisions, capacity::MOST_REMEMBERED),
            memory: flows.clamp(Self::LEAST.memory, capacity::MOST_REMEMBERED),
            host_flows: if hosts {
                flows.clamp(capacity::HOST_FLOWS, capacity::MOST_REMEMBERED)
            } else {
                least.host_flows
            },
            translations: if translates { capacity::TRANSLATIONS } else { least.translations },
            held: if holds { capacity::HELD } else { least.held },
            reached: if holds { capacity::REACHED } else { least.reached },
            syns: if holds { capacity::SYNS } else { least.syns },
            ..least
        }
    }

    /// Whether these do for what asks for others, but for rule sets, which are counted.
    pub(super) const fn do_for(self, asked: Self) -> bool {
        self.decisions >= asked.decisions
            && self.memory >= asked.memory
            && self.host_flows >= asked.host_flows
            && self.translations >= asked.translations
            && self.held >= asked.held
            && self.reached >= asked.reached
            && self.syns >= asked.syns
    }

    pub(super) fn apply(self, loader: &mut EbpfLoader<'_>) {
        loader
            .map_max_entries(map::SETS, self.sets * abi::SLOTS)
            .map_max_entries(map::DECISIONS, self.decisions)
            .map_max_entries(map::MEMORY, self.memory)
            .map_max_entries(map::HOST_FLOWS, self.host_flows)
            .map_max_entries(map::FRAGMENTS, self.fragments)
            .map_max_entries(map::TRANSLATIONS, self.translations)
            .map_max_entries(map::HELD, self.held)
            .map_max_entries(map::REACHED, self.reached)
            .map_max_entries(map::SYNS, self.syns);
    }
}

fn entries(number: usize) -> u32 {
    number.try_into().unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(text: &str) -> Sizes {
        let text = format!(
            "{text}\n[[rules]]\nscope = \"inbound\"\naction = \"direct\"\naccept = \"at-once\"\nprotocol = \"tcp\""
        );
        Sizes::of(&crate::config::parse("tproxy.toml".as_ref(), text.as_bytes()).unwrap(), 10)
    }

    #[test]
    fn what_is_not_asked_for_takes_no_memory() {
        assert_eq!(sizes(""), Sizes::LEAST);
        assert_eq!(sizes("limits.udp_sessions = 10"), Sizes::LEAST);
    }

    #[test]
    fn maps_grow_with_limits_and_rules() {
        assert_eq!(sizes("limits.udp_sessions = 60000").memory, 120_000);
        let rule = "[[rules]]\nscope = \"inbound\"\naction = \"direct\"\nlimits.connections = 20000";
        assert_eq!(sizes(&format!("{rule}\n{rule}")).decisions, 40_000);
        let config = crate::config::parse("tproxy.toml".as_ref(), rule.as_bytes()).unwrap();
        assert_eq!(Sizes::of(&config, 3000).sets, 6000);
    }

    #[test]
    fn flows_of_the_hosts_own_have_room_where_rules_may_take_their_replies() {
        let of = |rule: &str| {
            let text = format!("limits.udp_sessions = 100000\n[[rules]]\naction = \"direct\"\n{rule}");
            Sizes::of(&crate::config::parse("tproxy.toml".as_ref(), text.as_bytes()).unwrap(), 10).host_flows
        };
        for scope in ["inbound", "outbound"] {
            assert_eq!(of(&format!("scope = \"{scope}\"\nprotocol = \"udp\"")), 200_000);
            assert_eq!(of(&format!("scope = \"{scope}\"\nprotocol = \"tcp\"")), capacity::FEW_HOST_FLOWS);
        }
        let forwarded = "scope = \"forwarded\"\ninterfaces = [\"lan\"]\nprotocol = \"udp\"";
        assert_eq!(of(forwarded), capacity::FEW_HOST_FLOWS);
    }

    #[test]
    fn what_only_some_rules_need_is_large_where_there_are_such() {
        let of = |rest: &str| {
            let rule = format!(
                "[[rules]]\nscope = \"outbound\"\ninterfaces = [\"lan\"]\naction = \"direct\"\nprotocol = \"tcp\"\n{rest}"
            );
            Sizes::of(&crate::config::parse("tproxy.toml".as_ref(), rule.as_bytes()).unwrap(), 10)
        };
        let plain = of("accept = \"at-once\"");
        assert_eq!(plain, Sizes::LEAST);
        let text = "[[rules]]\nscope = \"forwarded\"\ninterfaces = [\"lan\"]\naction = \"reject\"";
        let forwarded = crate::config::parse("tproxy.toml".as_ref(), text.as_bytes()).unwrap();
        assert_eq!(Sizes::of(&forwarded, 10), Sizes { translations: capacity::TRANSLATIONS, ..plain });
        let holding = of("accept = \"after-connect\"");
        assert_eq!(holding.syns, capacity::SYNS);
        assert!(holding.held > plain.held && holding.reached > plain.reached);
        assert!(holding.do_for(plain) && !plain.do_for(holding));
    }
}
