//! Hosts that are set up unlike the default.

use crate::{reload::File, support::*};

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

#[test]
fn what_a_mark_that_counts_for_senders_takes_is_said_and_two_instances_do() {
    let world = World::new();
    let gateway = &world.net.gateway;
    gateway.set_sysctl("net.ipv4.conf.all.src_valid_mark", "1").unwrap();
    let file = File::new(
        "[[rules]]\nname = \"own\"\nscope = \"outbound\"\nto = [\"8.8.8.8\"]\nports = [\"81\"]\naction = \"respond=own\"\n\
         [[rules]]\nname = \"clients\"\nscope = \"forwarded\"\ninterfaces = [\"lan\"]\naction = \"respond=taken\"\n",
    );
    let one = world.tproxy(&file.flags());
    one.wait_line(&["interface=\"lan\"", "src_valid_mark", "sysctl -w"], PATIENCE).unwrap();
    drop(one);
    let clients = world.tproxy(&format!("{FORWARDED} --action respond=taken"));
    let own = world.tproxy(
        "--name own --mark 0x100000/0x300000 --table 4711 --priority 4711 --scope outbound --to 8.8.8.8 --port 81 --action respond=own",
    );
    world.curl(Family::V4.public(), 80).assert_body("taken", &*clients);
    curl(gateway, "", Family::V4.public(), 81).assert_body("own", &*own);
}
