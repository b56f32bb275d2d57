//! NAT that sends elsewhere (DNAT, REDIRECT) what a rule selects.

use tproxy::config::Config;

use super::{
    Base, ChainHook, Finding, Obstacle, ObstacleKind,
    destination::Destination,
    steered::{LOOPBACK, Steered},
    walk::{Does, FirewallRule, Marked, met},
};

const CHECK: &str = "nat";

/// What to do where it does so with what a process of this host sends.
pub(super) const LEAVE_OUT: &str = "leave it out of the rules with except, or exempt what they select from NAT, by a RETURN in front of that";

impl Base<'_> {
    /// Rules that may send a packet elsewhere. `config` says where it may go to; without it, anywhere.
    pub(super) fn redirects(
        &self,
        packet: &Marked<'_>,
        config: Option<&Config>,
    ) -> Vec<(ObstacleKind, &FirewallRule)> {
        let (kind, value) = match self.hook {
            // What comes by `lo` has met NAT as it was sent.
            ChainHook::Prerouting if packet.of.interface != LOOPBACK => {
                (ObstacleKind::Redirects, packet.value)
            }
            // An application's has no mark of ours.
            ChainHook::Output => (ObstacleKind::RedirectsOwn, 0),
            _ => return Vec::new(),
        };
        let mut redirecting = Vec::new();
        for to in &Destination::of(packet.of, config) {
            let rules = met(self.chains, self.name, &Marked { to, value, ..*packet });
            redirecting.extend(rules.into_iter().filter(|rule| rule.does == Does::Redirect));
        }
        redirecting.into_iter().map(|rule| (kind, rule)).collect()
    }
}

/// Which flows are selected is not known where nothing runs; that they may be is no reason to warn.
pub(super) fn findings(steered: &Steered, obstacles: Vec<Obstacle>) -> Vec<Finding> {
    let finding = |found: Obstacle| match steered {
        Steered::Known(_) => Finding::warn(CHECK, found.shown(), found.kind.breaks(), found.cure),
        Steered::Among(_) => Finding::ok(
            CHECK,
            format!("{}: tproxy doctor --config FILE says whether its rules select some of it", found.place),
        ),
    };
    obstacles.into_iter().map(finding).collect()
}
