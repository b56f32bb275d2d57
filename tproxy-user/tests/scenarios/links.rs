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
