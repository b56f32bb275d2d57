//! Interfaces that come and go while `tproxy` runs.

use crate::support::*;

#[test]
fn a_forwarded_interface_that_is_made_anew_is_intercepted_again() {
    for engine in ENGINES {
        let world = World::new();
        let net = &world.net;
        let tproxy = world.tproxy(&format!("{FORWARDED} --action respond=hello --steer {engine}"));
        for round in 0..3 {
            for family in Family::ALL {
                let context = format!("{engine}, round {round}\n{}", *tproxy);
                world.curl(family.public(), 80).assert_body("hello", &context);
            }
            let position = tproxy.position();
            net.gateway.ip("link del lan").unwrap();
            tproxy.wait_line_from(position, &["lan"], PATIENCE).unwrap_or_else(|error| panic!("{error}"));
            let position = tproxy.position();
            net.plug_lan().unwrap();
            tproxy.wait_line_from(position, &["lan"], PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

#[test]
fn another_interface_that_vanishes_does_no_harm() {
    let world = World::new();
    let tproxy = world.tproxy(&format!("{FORWARDED} --interface wan --action respond=hello"));
    let position = tproxy.position();
    world.net.gateway.ip("link del wan").unwrap();
    tproxy.wait_line_from(position, &["wan"], PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    for family in Family::ALL {
        // With no route left it is our answer or none.
        world.curl(family.public(), 80).assert_body("hello", &*tproxy);
    }
}

#[test]
fn an_interface_that_goes_down_and_up_is_still_intercepted() {
    let world = World::new();
    let tproxy = world.tproxy("--scope forwarded --interface lan --to 0.0.0.0/0 --action respond=hello");
    world.net.gateway.ip("link set lan down\nlink set lan up").unwrap();
    world.curl(Family::V4.public(), 80).assert_body("hello", &*tproxy);
}

#[test]
fn outbound_follows_the_interfaces_with_a_route() {
    for engine in ENGINES {
        let world = World::new();
        let gateway = &world.net.gateway;
        let other = Namespace::new("other").unwrap();
        let _nginx = Nginx::start(&other).unwrap();
        let tproxy = world.tproxy(&format!(
            "--scope outbound --to 10.5.0.0/24 --to fd00:5::/64 --action respond=hello --steer {engine}"
        ));
        for leave in ["link del extra", "link set extra down"] {
            let position = tproxy.position();
            gateway.join("extra", &other, "eth0").unwrap();
            gateway.ip("addr add 10.5.0.1/24 dev extra\naddr add fd00:5::1/64 dev extra nodad").unwrap();
            other.ip("addr add 10.5.0.2/24 dev eth0\naddr add fd00:5::2/64 dev eth0 nodad").unwrap();
            tproxy.wait_line_from(position, &["extra"], PATIENCE).unwrap_or_else(|error| panic!("{error}"));
            for address in ["10.5.0.2", "fd00:5::2"] {
                let context = format!("{engine}, {leave}\n{}", *tproxy);
                curl(gateway, "", address.parse().unwrap(), 80).assert_body("hello", &context);
            }
            let position = tproxy.position();
            gateway.ip(leave).unwrap();
            tproxy.wait_line_from(position, &["extra"], PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

#[test]
fn interfaces_are_named_by_patterns_and_may_come_later() {
    let world = World::new();
    let gateway = &world.net.gateway;
    for names in ["--interface la*", "--interface wg0 --interface la?"] {
        gateway.ip("link del lan").unwrap();
        let tproxy = world.tproxy(&format!("--scope forwarded {names} --action respond=hello"));
        tproxy.wait_line(&["WARN", "no interface"], PATIENCE).unwrap();
        let position = tproxy.position();
        world.net.plug_lan().unwrap();
        tproxy.wait_line_from(position, &["lan", "appeared"], PATIENCE).unwrap();
        for family in Family::ALL {
            world.curl(family.public(), 80).assert_body("hello", &*tproxy);
        }
    }
}

#[test]
fn a_port_of_a_bridge_is_refused_with_the_name_of_the_bridge() {
    let world = World::new();
    let gateway = &world.net.gateway;
    add_port(gateway);
    for scope in ["forwarded", "outbound"] {
        let ended = tproxy_output(
            gateway,
            &format!("run --scope {scope} --interface gw-port --action respond=hello"),
        );
        assert!(!ended.status.success() && ended.said.contains("port of 'br0'"), "{}", ended.said);
    }
    // What a pattern matches beside others is left out.
    let tproxy = world.tproxy("--scope forwarded --interface lan --interface gw-* --action respond=hello");
    for family in Family::ALL {
        world.curl(family.public(), 80).assert_body("hello", &*tproxy);
    }
    let status = tproxy_output(gateway, "status");
    assert!(!status.said.contains("gw-port"), "{}", status.said);
}

#[test]
fn routing_that_others_flush_is_put_back_with_a_warning() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let tproxy = world.tproxy(&format!("{FORWARDED} --action respond=hello"));
    let flushed = [
        ("ip rule del pref 100", "ip rule show pref 100", "IPv4 rule"),
        ("ip -6 rule del pref 100", "ip -6 rule show pref 100", "IPv6 rule"),
        ("ip route flush table 29808", "ip route show table 29808", "IPv4 local default route"),
    ];
    for (command, show, what) in flushed {
        let position = tproxy.position();
        gateway.run(command).unwrap();
        // Named, because what is looked for at the very moment in which it is put back may be told of once more.
        tproxy.wait_line_from(position, &["WARN", "somebody removed", what], PATIENCE).unwrap();
        // Whoever flushes a table looks whether something is left, and may have removed it twice.
        eventually(&*tproxy, || !gateway.run(show).unwrap().is_empty());
        for family in Family::ALL {
            world.curl(family.public(), 80).assert_body("hello", &*tproxy);
        }
    }
    let status: serde_json::Value =
        serde_json::from_str(&tproxy_output(gateway, "status --json").said).unwrap();
    assert!(status["restored"].as_u64() >= Some(3), "{status}");
}
