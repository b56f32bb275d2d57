//! Hosts that are set up unlike the default.

use std::time::Instant;

use crate::{clean::Snapshot, reload::File, support::*};

/// Settings of the gateway that broke other interceptors.
const ROWS: [&[(&str, &str)]; 8] = [
    &[("net.ipv4.conf.all.src_valid_mark", "1")],
    &[("net.ipv4.tcp_fwmark_accept", "1")],
    &[("net.ipv4.ip_early_demux", "0"), ("net.ipv4.tcp_early_demux", "0")],
    &[("net.ipv4.tcp_early_demux", "0")],
    &[
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.lan.rp_filter", "0"),
        ("net.ipv4.conf.wan.rp_filter", "0"),
        ("net.ipv4.conf.lo.rp_filter", "0"),
    ],
    &[
        ("net.ipv4.conf.all.rp_filter", "1"),
        ("net.ipv4.conf.lan.rp_filter", "1"),
        ("net.ipv4.conf.wan.rp_filter", "1"),
        ("net.ipv4.conf.lo.rp_filter", "1"),
    ],
    &[
        ("net.ipv4.conf.all.rp_filter", "2"),
        ("net.ipv4.conf.lan.rp_filter", "2"),
        ("net.ipv4.conf.wan.rp_filter", "2"),
    ],
    &[
        ("net.ipv4.conf.all.src_valid_mark", "1"),
        ("net.ipv4.conf.all.rp_filter", "1"),
        ("net.ipv4.tcp_fwmark_accept", "1"),
        ("net.ipv4.ip_early_demux", "0"),
    ],
];

#[test]
fn forwarded_works_under_each_setting_of_the_gateway() {
    each_setting(|world, setting| {
        for (engine, source) in ENGINES.iter().flat_map(|engine| [(engine, "host"), (engine, "client")]) {
            let tproxy =
                world.tproxy(&format!("{FORWARDED} --action direct --source {source} --steer {engine}"));
            for family in Family::ALL {
                let seen = if source == "host" { family.wan() } else { family.client() };
                let context = format!("{setting:?} {engine}\n{}", *tproxy);
                world.curl(family.public(), 80).assert_nginx((family.public(), 80).into(), seen, &context);
                let client = family.client().to_string();
                tproxy.wait_line(&[&client, &family.public().to_string()], PATIENCE).unwrap();
            }
        }
    });
}

#[test]
fn outbound_works_under_each_setting_of_the_host() {
    each_setting(|world, setting| {
        for engine in ENGINES {
            let args = format!(
                "--scope outbound --to 0.0.0.0/0 --to ::/0 --port 80 --action direct --steer {engine}"
            );
            let tproxy = world.tproxy(&args);
            for family in Family::ALL {
                let context = format!("{setting:?} {engine}\n{}", *tproxy);
                let got = curl(&world.net.gateway, "", family.public(), 80);
                got.assert_nginx((family.public(), 80).into(), family.wan(), &context);
                tproxy.wait_line(&[&family.public().to_string()], PATIENCE).unwrap();
            }
        }
    });
}

#[test]
fn inbound_works_under_each_setting_of_the_host() {
    each_setting(|world, setting| {
        let _application = Nginx::start(&world.net.gateway).unwrap();
        for source in ["host", "client"] {
            let tproxy =
                world.tproxy(&format!("--scope inbound --port 8080 --action direct --source {source}"));
            for family in Family::ALL {
                let seen = if source == "host" { family.lan() } else { family.client() };
                let context = format!("{setting:?}\n{}", *tproxy);
                world.curl(family.lan(), 8080).assert_nginx((family.lan(), 8080).into(), seen, &context);
                let client = family.client().to_string();
                tproxy.wait_line(&[&client, &family.lan().to_string()], PATIENCE).unwrap();
            }
        }
    });
}

fn each_setting(check: impl Fn(&World, &[(&str, &str)])) {
    for setting in ROWS {
        let world = World::new();
        for (key, value) in setting {
            world.net.gateway.set_sysctl(key, value).unwrap();
        }
        check(&world, setting);
        // What we touch we give back; what we do not touch stays.
        for (key, value) in setting {
            assert_eq!(world.net.gateway.sysctl(key).unwrap(), *value, "{key}");
        }
    }
}

/// `wg-quick` sets it.
#[test]
fn a_mark_that_counts_for_senders_takes_nothing_from_rules_of_two_scopes() {
    for engine in ENGINES {
        let world = World::new();
        let gateway = &world.net.gateway;
        let file = File::new(&format!(
            "steer = \"{engine}\"\n\
             [[rules]]\nname = \"own\"\nscope = \"outbound\"\nports = [\"81\"]\naction = \"respond=own\"\n\
             [[rules]]\nname = \"clients\"\nscope = \"forwarded\"\ninterfaces = [\"lan\"]\nports = [\"80\"]\naction = \"direct\"\n",
        ));
        gateway.set_sysctl("net.ipv4.conf.all.rp_filter", "0").unwrap();
        let before = Snapshot::take(gateway);
        let tproxy = world.tproxy(&file.flags());
        let rules = |family: &str| gateway.run(&format!("ip {family} rule show")).unwrap();
        for (src_valid_mark, rp_filter) in [("0", "0"), ("1", "0"), ("1", "1"), ("1", "2"), ("0", "0")] {
            gateway.set_sysctl("net.ipv4.conf.all.src_valid_mark", src_valid_mark).unwrap();
            gateway.set_sysctl("net.ipv4.conf.all.rp_filter", rp_filter).unwrap();
            // The kernel gives no word of it.
            let begun = Instant::now();
            let landing = "fwmark 0x10000000/0x30000000 iif lo";
            while (rules("-4").contains(landing), rules("-6").contains(landing))
                != (src_valid_mark == "1", src_valid_mark == "1")
            {
                assert!(begun.elapsed() < PATIENCE, "{}\n{}", rules("-4"), *tproxy);
            }
            for family in Family::ALL {
                let context = format!("{engine} {src_valid_mark} {rp_filter} {family:?}\n{}", *tproxy);
                let got = world.curl(family.public(), 80);
                got.assert_nginx((family.public(), 80).into(), family.wan(), &context);
                curl(gateway, "", family.public(), 81).assert_body("own", &context);
                let client = datagrams(gateway, (family.wan(), 0));
                client.send_to(b"?", (family.public(), 81)).unwrap();
                let mut answer = [0; 8];
                let (length, _) =
                    client.recv_from(&mut answer).unwrap_or_else(|error| panic!("{error}\n{context}"));
                assert!(answer[..length].starts_with(b"own"), "{context}");
            }
        }
        drop(tproxy);
        before.assert_same(gateway, &engine);
    }
}
