//! Firewalls that stand in the way of steered packets: `run` and `doctor` name them, and what they say that cures it does.

use std::net::SocketAddr;

use crate::{
    doctor::doctor,
    reload::{File, answering},
    support::*,
};

/// Neighbours are found in spite of it.
const NEIGHBOURS: &str = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept";

/// A table of nft with these chains, sets and maps.
fn nft(gateway: &Namespace, table: &str) {
    gateway.feed("nft -f -", &format!("table inet f {{\n{table}\n}}\n")).unwrap();
}

fn taken() -> String {
    format!("{FORWARDED} --port 80 --action respond=taken")
}

#[test]
fn what_discards_behind_jumps_gotos_and_maps_is_found_and_cured() {
    let chains = |verdict: &str| {
        format!(
            "map m {{ type ifname : verdict; elements = {{ lo : accept, lan : goto a }}; }}\n\
             chain a {{ {NEIGHBOURS}; jump b; }}\n\
             chain b {{ ct state vmap {{ established : accept, related : accept, new : {verdict} }}; }}\n\
             chain in {{ type filter hook input priority 0; iifname vmap @m; }}"
        )
    };
    let iptables = |program: &str| {
        format!(
            "{program} -N a\n{program} -N b\n{program} -A INPUT -m comment --comment open -j a\n\
             {program} -A a -p icmpv6 -j ACCEPT\n{program} -A a -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
             {program} -A a -g b\n{program} -A b -i lo -j RETURN\n{program} -A b -p tcp -j DROP\n{program} -A a -j ACCEPT"
        )
    };
    for (name, family) in
        [("nft", Family::V4), ("nft", Family::V6), ("iptables", Family::V4), ("ip6tables", Family::V6)]
    {
        let world = World::new();
        let gateway = &world.net.gateway;
        if name == "nft" {
            nft(gateway, &chains("drop"));
        } else {
            for line in iptables(name).replace("-p icmpv6", "-p ipv6-icmp").lines() {
                gateway.run(line).unwrap();
            }
        }
        let before = doctor(gateway, "").cure("firewall", "warn");
        let tproxy = world.tproxy(&taken());
        tproxy.wait_line(&["firewall: ", "traverse INPUT", "cure: "], PATIENCE).unwrap();
        let cut_off =
            connect_within(&world.net.client, (family.public(), 80), std::time::Duration::from_millis(900));
        assert!(cut_off.is_err(), "{name}, {family:?}: it is no obstacle");
        let cure = doctor(gateway, "").cure("firewall", "warn");
        assert_eq!(cure, before, "an instance that runs changes nothing of it");
        gateway.run(&cure).unwrap();
        doctor(gateway, "").assert_ok("firewall");
        world.curl(family.public(), 80).assert_body("taken", &*tproxy);
    }
}

#[test]
fn what_accepts_the_mark_or_the_interface_behind_jumps_and_sets_is_no_reason_to_warn() {
    let by_set = format!(
        "set s {{ type ifname; elements = {{ lo, lan }}; }}\nchain a {{ iifname @s accept; }}\n\
         chain in {{ type filter hook input priority 0; policy drop; {NEIGHBOURS}; jump a; }}"
    );
    let by_mark = format!(
        "chain a {{ meta mark and 0x30000000 vmap {{ 0x20000000 : accept }}; }}\n\
         chain in {{ type filter hook input priority 0; policy drop; {NEIGHBOURS}; goto a; }}"
    );
    let accept = |program: &str, what: &str| {
        format!(
            "{program} -P INPUT DROP\n{program} -N a\n{program} -A INPUT -p ipv6-icmp -j ACCEPT\n\
             {program} -A INPUT -g a\n{program} -A a {what} -j ACCEPT"
        )
    };
    let mark = "-m mark --mark 0x20000000/0x30000000";
    let both = |what| ["iptables", "ip6tables"].map(|program| accept(program, what)).join("\n");
    for (native, lines) in [
        (Some(by_set), String::new()),
        (Some(by_mark), String::new()),
        (None, both(mark)),
        (None, both("-i lan")),
        (None, both("-i la+ -m comment --comment DROP")),
    ] {
        let world = World::new();
        let gateway = &world.net.gateway;
        if let Some(table) = native {
            nft(gateway, &table);
        }
        for line in lines.lines() {
            gateway.run(line).unwrap();
        }
        doctor(gateway, "").assert_ok("firewall");
        let tproxy = world.tproxy(&taken());
        doctor(gateway, "").assert_ok("firewall");
        for family in Family::ALL {
            world.curl(family.public(), 80).assert_body("taken", &*tproxy);
        }
        assert!(!tproxy.lines().iter().any(|line| line.contains("firewall")), "{}", *tproxy);
    }
}

#[test]
fn a_rule_that_takes_the_mark_away_is_found_and_skipped_by_the_command_given() {
    let restore = "chain pre { type filter hook prerouting priority -150; jump a; }\nchain a { meta mark set ct mark; }";
    for (program, family) in
        [("iptables", Family::V4), ("ip6tables", Family::V6), ("nft", Family::V4), ("nft", Family::V6)]
    {
        let world = World::new();
        let gateway = &world.net.gateway;
        match program {
            "nft" => nft(gateway, restore),
            _ => {
                gateway
                    .run(&format!("{program} -t mangle -A PREROUTING -j CONNMARK --restore-mark"))
                    .unwrap();
            }
        }
        let tproxy = world.tproxy(&taken());
        tproxy.wait_line(&["firewall: ", "the steer mark is overwritten", "cure: "], PATIENCE).unwrap();
        assert!(!world.curl(family.public(), 80).body.contains("taken"), "{program}: it is no obstacle");
        gateway.run(&doctor(gateway, "").cure("firewall", "warn")).unwrap();
        doctor(gateway, "").assert_ok("firewall");
        world.curl(family.public(), 80).assert_body("taken", &*tproxy);
    }
}

/// Without the cure a connection is taken, and what is connected for it, until descriptors run out.
#[test]
fn the_own_mark_that_is_taken_away_is_named_in_scope_outbound_and_cured() {
    for (program, family) in [("iptables", Family::V4), ("ip6tables", Family::V6)] {
        let world = World::new();
        let gateway = &world.net.gateway;
        gateway.run(&format!("{program} -t mangle -A OUTPUT -j CONNMARK --restore-mark")).unwrap();
        let cure = doctor(gateway, "").cure("firewall", "warn");
        let tproxy = world.tproxy("--scope outbound --to 0.0.0.0/0 --to ::/0 --proto tcp --action direct");
        tproxy.wait_line(&["firewall: ", "own packets", &cure], PATIENCE).unwrap();
        gateway.run(&cure).unwrap();
        doctor(gateway, "").assert_ok("firewall");
        let got = curl(gateway, "", family.server(), 80);
        got.assert_nginx((family.server(), 80).into(), family.wan(), &*tproxy);
    }
}

#[test]
fn nat_of_what_a_rule_selects_is_named_and_skipped_by_the_command_given() {
    for program in ["iptables", "nft"] {
        let world = World::new();
        let gateway = &world.net.gateway;
        let to = |family: Family| SocketAddr::new(family.server(), 8080);
        if program == "nft" {
            let [v4, v6] = Family::ALL.map(to);
            let sent = |nf: &str, ip: &str, port: u16, to| {
                format!("meta nfproto {nf} tcp dport {port} dnat {ip} to {to};")
            };
            nft(
                gateway,
                &format!(
                    "chain pre {{ type nat hook prerouting priority dstnat; tcp dport 80 jump a; }}\n\
                     chain a {{ {} {} }}\n\
                     chain out {{ type nat hook output priority -100; {} {} }}",
                    sent("ipv4", "ip", 80, v4),
                    sent("ipv6", "ip6", 80, v6),
                    sent("ipv4", "ip", 81, v4),
                    sent("ipv6", "ip6", 81, v6),
                ),
            );
        } else {
            for (program, family) in [("iptables", Family::V4), ("ip6tables", Family::V6)] {
                for (chain, port) in [("PREROUTING", 80), ("OUTPUT", 81)] {
                    let rule =
                        format!("-A {chain} -p tcp --dport {port} -j DNAT --to-destination {}", to(family));
                    gateway.run(&format!("{program} -t nat {rule}")).unwrap();
                }
            }
        }
        let elsewhere = File::new(&answering("lan", 82, "taken"));
        assert!(doctor(gateway, &elsewhere.flags()).findings("nat", "warn").is_empty(), "{program}");
        let tproxy = world.tproxy(&format!("{FORWARDED} --port 80 --action direct"));
        for family in Family::ALL {
            world.curl(family.public(), 80).assert_nginx(to(family), family.wan(), &*tproxy);
        }
        let said = doctor(gateway, "");
        let found = said.findings("nat", "warn");
        assert_eq!(found.len(), if program == "nft" { 1 } else { 2 }, "{found:#?}");
        for finding in found {
            gateway.run(finding["cure"].as_str().expect("a cure")).unwrap();
        }
        assert!(doctor(gateway, "").findings("nat", "warn").is_empty(), "{program}");
        for family in Family::ALL {
            let asked = (family.public(), 80).into();
            world.curl(family.public(), 80).assert_nginx(asked, family.wan(), &*tproxy);
        }
        drop(tproxy);
        let own = world.tproxy("--scope outbound --to 0.0.0.0/0 --to ::/0 --proto tcp --action direct");
        own.wait_line(&["pass_translated", "cure: ", "except"], PATIENCE).unwrap();
        for family in Family::ALL {
            curl(gateway, "", family.public(), 81).assert_nginx(to(family), family.wan(), &*own);
        }
    }
}

#[test]
fn what_forward_discards_is_named_since_flows_that_are_taken_do_not_meet_it() {
    let by_map = "chain passing { type filter hook forward priority 0; ip saddr vmap { 10.1.0.2 : drop }; ip6 saddr fd00:1::2 drop; }";
    for (program, host) in [("iptables", "10.1.0.2"), ("ip6tables", "fd00:1::2"), ("nft", by_map)] {
        let gateway = Namespace::new("policy").unwrap();
        match program {
            "nft" => nft(&gateway, host),
            _ => {
                gateway.run(&format!("{program} -A FORWARD -s {host} -j DROP")).unwrap();
            }
        }
        let cure = doctor(&gateway, "").cure("firewall", "warn");
        assert!(cure.contains("action = \"drop\""), "{cure}");
    }
}

#[test]
fn packets_that_conntrack_finds_invalid_and_a_firewall_discards_are_named() {
    for program in ["iptables", "ip6tables"] {
        let gateway = Namespace::new("invalid").unwrap();
        gateway.run(&format!("{program} -A INPUT -m conntrack --ctstate INVALID -j DROP")).unwrap();
        gateway.run(&doctor(&gateway, "").cure("firewall", "warn")).unwrap();
        doctor(&gateway, "").assert_ok("firewall");
    }
}
