//! `--admit`: what firewalls discard of what is steered they accept while tproxy runs, and not afterwards.

use std::time::Duration;

use crate::{clean::assert_cleanup, doctor::doctor, support::*};

/// A firewall that discards what is steered, of one family or of both.
enum Firewall {
    /// Of this program.
    Iptables(&'static str),
    /// A table of this family, with these chains.
    Nft(&'static str, String),
}

const NEIGHBOURS: &str = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept";

fn firewalls() -> Vec<(Firewall, Family)> {
    let by_policy = format!(
        "chain in {{ type filter hook input priority 0; policy drop; {NEIGHBOURS}; ct state established accept; }}"
    );
    let twice = "chain no { ct state new drop; }
        chain in { type filter hook input priority -5; meta l4proto tcp ct state vmap { new : jump no }; }
        chain later { type filter hook input priority 5; meta l4proto tcp iifname vmap { lan : goto no }; }";
    vec![
        (Firewall::Iptables("iptables"), Family::V4),
        (Firewall::Iptables("ip6tables"), Family::V6),
        (Firewall::Iptables("iptables-legacy"), Family::V4),
        (Firewall::Iptables("ip6tables-legacy"), Family::V6),
        (Firewall::Nft("inet", by_policy), Family::V4),
        (Firewall::Nft("inet", twice.into()), Family::V6),
        (Firewall::Nft("ip", twice.into()), Family::V4),
    ]
}

impl Firewall {
    /// As whoever owns it has it, whatever is there.
    fn make(&self, gateway: &Namespace) {
        match self {
            Self::Iptables(program) => {
                for line in [
                    "-P INPUT DROP",
                    "-F INPUT",
                    "-A INPUT -p ipv6-icmp -j ACCEPT",
                    "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
                    "-A INPUT -i lan -j DROP",
                ] {
                    gateway.run(&format!("{program} {line}")).unwrap();
                }
            }
            Self::Nft(family, chains) => {
                let table = format!("table {family} f");
                let text = format!("{table}\ndelete {table}\n{table} {{\n{chains}\n}}\n");
                gateway.feed("nft -f -", &text).unwrap();
            }
        }
    }

    fn shown(&self, gateway: &Namespace) -> String {
        let line = match self {
            Self::Iptables(program) => format!("{program}-save"),
            Self::Nft(..) => "nft -s list ruleset".into(),
        };
        let shown = gateway.run(&line).unwrap();
        // When, and how many packets so far.
        let is_rule = |line: &&str| !line.starts_with(['#', ':']);
        shown.lines().filter(is_rule).collect::<Vec<_>>().join("\n")
    }
}

fn taken() -> String {
    format!("{FORWARDED} --port 80 --action respond=taken --admit")
}

#[test]
fn what_is_steered_is_accepted_until_the_end_and_again_after_others_made_their_firewall_anew() {
    each_at_once(firewalls(), |(firewall, family)| {
        let world = World::new();
        let gateway = &world.net.gateway;
        firewall.make(gateway);
        let before = firewall.shown(gateway);
        let mut tproxy = world.tproxy(&taken());
        tproxy.wait_line(&["firewall: added the accept rule in"], PATIENCE).unwrap();
        world.curl(family.public(), 80).assert_body("taken", &*tproxy);
        doctor(gateway, "").assert_ok("firewall");
        firewall.make(gateway);
        tproxy.wait_line(&["somebody removed the accept rule in", "in place again"], PATIENCE).unwrap();
        world.curl(family.public(), 80).assert_body("taken", &*tproxy);
        assert!(!tproxy.lines().iter().any(|line| line.contains("cure:")), "{}", *tproxy);
        tproxy.signal(rustix::process::Signal::TERM);
        assert!(tproxy.wait(PATIENCE).unwrap().success(), "{}", *tproxy);
        assert_eq!(firewall.shown(gateway), before);
    });
}

#[test]
fn what_a_killed_one_had_accepted_is_not_after_cleanup_or_a_start_without() {
    each_at_once(firewalls(), |(firewall, family)| {
        let world = World::new();
        let gateway = &world.net.gateway;
        firewall.make(gateway);
        let before = firewall.shown(gateway);
        world.tproxy(&taken()).kill9();
        assert_ne!(firewall.shown(gateway), before);
        assert_cleanup(gateway);
        assert_eq!(firewall.shown(gateway), before);
        world.tproxy(&taken()).kill9();
        let tproxy = world.tproxy(&format!("{FORWARDED} --port 80 --action respond=taken"));
        assert_eq!(firewall.shown(gateway), before, "{}", *tproxy);
        assert!(
            connect_within(&world.net.client, (family.public(), 80), Duration::from_millis(900)).is_err()
        );
    });
}

/// Somebody else's rules are none of ours, whatever they are about.
#[test]
fn a_firewall_that_accepts_what_is_steered_is_left_alone() {
    for accept in ["-i lan", "-m mark --mark 0x20000000/0x30000000"] {
        let world = World::new();
        let gateway = &world.net.gateway;
        gateway.run("iptables -P INPUT DROP").unwrap();
        gateway.run(&format!("iptables -A INPUT {accept} -j ACCEPT")).unwrap();
        let shown = || gateway.run("nft -s list ruleset").unwrap();
        let before = shown();
        let tproxy = world.tproxy(&taken());
        world.curl(Family::V4.public(), 80).assert_body("taken", &*tproxy);
        assert_eq!(shown(), before);
    }
}
