//! What runs on a gateway.

mod haproxy;
mod nginx;
mod ours;

use tproxy::config::Source;
use tproxy_netns::{Namespace, Proc, Tproxy};

use super::{contender::Way, steering::Rules};

/// The port that HAProxy and nginx listen on.
const PORT: u16 = 4000;

/// A running proxy with its steering in place.
#[derive(Debug)]
pub(super) enum Proxy {
    /// `tproxy run`, which steers by itself.
    Tproxy(Tproxy),
    /// Any other, behind iptables or nft.
    Behind(Proc),
}

impl Proxy {
    pub(super) fn start(
        way: Way,
        source: Source,
        rules: Rules,
        gateway: &Namespace,
        cpus: usize,
    ) -> anyhow::Result<Self> {
        match way {
            Way::Iptables | Way::Nft | Way::Singly => ours::start_behind(way, source, rules, gateway, cpus),
            Way::SkAssign | Way::SkLookup => ours::start(way, source, rules, gateway, cpus),
            Way::Haproxy => haproxy::start(source, rules, gateway, cpus),
            Way::Nginx => nginx::start(source, rules, gateway, cpus),
        }
    }

    /// The process, or the parent of those that relay.
    pub(super) fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// What it wrote so far.
    pub(super) fn lines(&self) -> Vec<String> {
        self.process().lines()
    }

    fn process(&self) -> &Proc {
        match self {
            Self::Tproxy(tproxy) => tproxy,
            Self::Behind(proc) => proc,
        }
    }
}
