//! Where what a rule selects goes to, as far as rules of NAT ask about it.

use std::ops::RangeInclusive;

use ipnet::IpNet;
use tproxy::config::{Config, Scope, Selector};

use super::{
    FirstPacket,
    steered::{LOOPBACK, is_taken, may_select},
    walk::Holds,
};

/// The destinations of a rule; nothing listed means any.
#[derive(Debug, Clone, Default)]
pub(super) struct Destination {
    nets: Vec<IpNet>,
    except: Vec<IpNet>,
    ports: Vec<RangeInclusive<u16>>,
}

impl Destination {
    /// Nothing is known of it.
    pub(super) const ANY: Self = Self { nets: Vec::new(), except: Vec::new(), ports: Vec::new() };

    /// Those of all rules that select a packet of this kind; without rules, any.
    pub(super) fn of(packet: &FirstPacket, config: Option<&Config>) -> Vec<Self> {
        let Some(config) = config else { return vec![Self::ANY] };
        let scope = if packet.interface == LOOPBACK { Scope::Outbound } else { Scope::Forwarded };
        let rules = config.rules.iter().filter(|rule| {
            rule.selector.reach.scope == scope
                && is_taken(&rule.treatment.action)
                && may_select(&rule.selector, packet)
        });
        rules.map(|rule| Self::from(&rule.selector)).collect()
    }

    pub(super) fn is_in(&self, net: &IpNet) -> Holds {
        if self.except.iter().any(|left_out| left_out.contains(net)) {
            return Holds::Never;
        }
        let overlaps = |other: &IpNet| other.contains(net) || net.contains(other);
        holds(&self.nets, |own| net.contains(own), overlaps)
    }

    pub(super) fn has_port(&self, ports: &RangeInclusive<u16>) -> Holds {
        let contains = |own: &RangeInclusive<u16>| ports.contains(own.start()) && ports.contains(own.end());
        let overlaps = |own: &RangeInclusive<u16>| own.start() <= ports.end() && ports.start() <= own.end();
        holds(&self.ports, contains, overlaps)
    }
}

impl From<&Selector> for Destination {
    fn from(selector: &Selector) -> Self {
        Self {
            nets: selector.to.iter().copied().collect(),
            except: selector.except.iter().copied().collect(),
            ports: selector.ports.iter().cloned().collect(),
        }
    }
}

/// Whether all values, some or none are such; of no values, some are.
fn holds<T>(values: &[T], all: impl Fn(&T) -> bool, some: impl Fn(&T) -> bool) -> Holds {
    if values.is_empty() {
        Holds::Sometimes
    } else if values.iter().all(all) {
        Holds::Always
    } else if values.iter().any(some) {
        Holds::Sometimes
    } else {
        Holds::Never
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rule_of_nat_asks_holds_for_all_destinations_for_some_or_for_none() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let destination = Destination {
            nets: vec![net("10.0.0.0/8"), net("fd00::/8")],
            except: vec![net("10.96.0.0/16")],
            ports: vec![80..=80, 8000..=8099],
        };
        for (asked, expected) in [
            ("10.1.2.3/32", Holds::Sometimes),
            ("10.96.0.10/32", Holds::Never),
            ("192.0.2.0/24", Holds::Never),
            ("::/0", Holds::Sometimes),
        ] {
            assert_eq!(destination.is_in(&net(asked)), expected, "{asked}");
        }
        for (asked, expected) in [
            (80..=80, Holds::Sometimes),
            (0..=u16::MAX, Holds::Always),
            (81..=443, Holds::Never),
            (8090..=9000, Holds::Sometimes),
        ] {
            assert_eq!(destination.has_port(&asked), expected, "{asked:?}");
        }
        assert_eq!(Destination::ANY.is_in(&net("10.0.0.0/8")), Holds::Sometimes);
        let one = Destination { nets: vec![net("10.0.0.1/32")], ..Destination::ANY };
        assert_eq!(one.is_in(&net("10.0.0.0/8")), Holds::Always);
    }
}
