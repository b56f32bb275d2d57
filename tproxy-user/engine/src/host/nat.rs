//! NAT of this host, which may send elsewhere what comes in (DNAT, REDIRECT), what is for its own addresses included
//! (published ports).

use std::fs;

use super::nftables;

/// `NF_INET_PRE_ROUTING`
const PREROUTING: u32 = 0;
/// `NF_INET_POST_ROUTING`
const POSTROUTING: u32 = 4;

/// What is known of it.
#[derive(Debug, Default)]
pub(crate) struct KnownNat {
    /// Of nftables, when its chains were listed.
    generation: Option<u32>,
    is_in_nftables: bool,
    is_behind_in_nftables: bool,
    is_in_iptables: bool,
}

impl KnownNat {
    /// As it is now.
    pub(crate) fn found() -> Self {
        let mut nat = Self::default();
        nat.look();
        nat
    }

    /// Whether NAT may change the destination of what comes in: whether a chain of that kind has rules.
    pub(crate) const fn redirects(&self) -> bool {
        self.is_in_nftables || self.is_in_iptables
    }

    /// Whether NAT may change the source of what this host sends, and of what it forwards.
    pub(crate) const fn translates_sources(&self) -> bool {
        self.is_behind_in_nftables || self.is_in_iptables
    }

    /// Looks again. There may be thousands of chains, so they are listed only after a change.
    pub(crate) fn look(&mut self) {
        let generation = nftables::generation().ok();
        if generation.is_none() || generation != self.generation {
            self.generation = generation;
            [self.is_in_nftables, self.is_behind_in_nftables] = [PREROUTING, POSTROUTING].map(|hook| {
                nftables::has_rules_in("nat", hook).unwrap_or_else(|error| {
                    // No nftables, then.
                    tracing::debug!(%error, "cannot list the chains of nftables");
                    false
                })
            });
        }
        self.is_in_iptables = is_in_iptables();
    }
}

/// The legacy tables cannot be looked into without their own interface; one that is there was used.
fn is_in_iptables() -> bool {
    let has_nat = |name| {
        let path = format!("/proc/thread-self/net/{name}");
        fs::read_to_string(path).is_ok_and(|tables| tables.lines().any(|table| table == "nat"))
    };
    has_nat("ip_tables_names") || has_nat("ip6_tables_names")
}

/// Whether a packet that bears our mark is delivered to a socket of the host's as if it did not, beside rules that deliver what
/// `lo` receives by that mark: neither does its sender seem to be this host then (`fib_validate_source()` asks by the mark, as if
/// from `lo`), nor do the replies bear it.
pub(crate) fn marks_are_harmless<'a>(interfaces: impl IntoIterator<Item = &'a str>) -> bool {
    let mut interfaces = ["all"].into_iter().chain(interfaces);
    !is_set("tcp_fwmark_accept") && !is_set("fwmark_reflect") && !interfaces.any(validates_by_mark)
}

/// Whether, on an interface or on `all`, the sender of a packet is looked for by the packet's mark.
pub(crate) fn validates_by_mark(interface: &str) -> bool {
    is_set(&format!("conf/{interface}/src_valid_mark"))
}

fn is_set(key: &str) -> bool {
    fs::read_to_string(format!("/proc/sys/net/ipv4/{key}")).is_ok_and(|value| value.trim() != "0")
}
