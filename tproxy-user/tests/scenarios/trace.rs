//! `tproxy trace`: decisions of all kinds as they are made, and nothing for nobody.

use crate::support::*;

/// A trace in a namespace, once it looks.
#[track_caller]
fn trace(namespace: &Namespace, args: &str) -> Proc {
    let trace = namespace.start(&format!("{} trace {args}", binary().display())).unwrap();
    trace.wait_line(&["looking at the instance"], PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    trace
}

#[test]
fn decisions_are_shown_with_rule_and_reason() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let tproxy = world.tproxy(&format!("{FORWARDED} --port 80 --action respond=taken"));
    let trace = trace(gateway, "");
    for family in Family::ALL {
        world.curl(family.public(), 80).assert_body("taken", &*tproxy);
        assert_eq!(world.curl(family.public(), 81).code, Some(0));
        let client = family.client().to_string();
        let line =
            trace.wait_line(&["tcp", &client, ":80 ", "forwarded lan steer_rule rule=0"], PATIENCE).unwrap();
        assert!(line.contains(&family.public().to_string()), "{line}");
        trace.wait_line(&["tcp", &client, ":81 ", "forwarded lan pass_no_rule"], PATIENCE).unwrap();
    }
    let decided = trace.lines().iter().filter(|line| line.contains("steer_rule")).count();
    assert_eq!(decided, 2, "one a flow, not one a packet: {trace}");
}

#[test]
fn filters_choose_and_json_is_a_line_each() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let tproxy = world.tproxy(&format!("{FORWARDED} --port 80 --action reject"));
    let trace = trace(gateway, "--json --dst :80 --reason reject --client 10.1.0.0/24");
    for port in [81, 80] {
        world.curl(Family::V4.public(), port);
    }
    let line = trace.wait_line(&["{"], PATIENCE).unwrap_or_else(|error| panic!("{error}\n{}", *tproxy));
    let shown: serde_json::Value = serde_json::from_str(&line).unwrap();
    for (key, value) in
        [("protocol", "tcp"), ("destination", "8.8.8.8:80"), ("reason", "reject_rule"), ("interface", "lan")]
    {
        assert_eq!(shown[key], value, "{line}");
    }
    assert_eq!((&shown["rule"], &shown["pid"]), (&0.into(), &tproxy.pid().into()), "{line}");
}

#[test]
fn inbound_and_outbound_are_shown_too() {
    let world = World::new();
    let server = &world.net.server;
    let _inbound = tproxy_in(server, "--scope inbound --port 80 --action reject");
    let inbound = trace(server, "");
    assert_eq!(world.curl(Family::V4.server(), 80).code, Some(7));
    inbound.wait_line(&["10.2.0.2:80 inbound eth0 reject_rule rule=0"], PATIENCE).unwrap();
    world.curl(Family::V4.server(), 81);
    inbound.wait_line(&["10.2.0.2:81 inbound eth0 pass_no_rule"], PATIENCE).unwrap();

    let gateway = &world.net.gateway;
    let _outbound = tproxy_in(gateway, "--scope outbound --to 8.8.8.8 --uid 1234 --action drop");
    let outbound = trace(gateway, "--scope outbound");
    curl(gateway, "setpriv --reuid=77", Family::V4.public(), 80);
    outbound.wait_line(&["8.8.8.8:80 outbound wan pass_no_rule uid=77"], PATIENCE).unwrap();
}

#[test]
fn only_one_looks_at_a_time_and_a_killed_one_leaves_the_place_to_the_next() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let tproxy = world.tproxy(&format!("{FORWARDED} --port 80 --action respond=taken"));
    let mut first = trace(gateway, "");
    let second = tproxy_output(gateway, "trace");
    assert_eq!(second.status.code(), Some(1), "{}", second.said);
    assert!(
        second
            .said
            .contains(&format!("another tproxy trace looks at the instance with pid {}", tproxy.pid()))
    );
    first.kill9();
    // Decided while the flag still stands and nobody takes it: the next does not show what is past.
    world.curl(Family::V4.public(), 81);
    let next = trace(gateway, "");
    world.curl(Family::V4.public(), 80).assert_body("taken", &*tproxy);
    next.wait_line(&["steer_rule"], PATIENCE).unwrap();
    assert!(!next.lines().join("\n").contains(":81 "), "{next}");
}

#[test]
fn it_ends_with_the_instance_and_does_not_begin_without() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let nobody = tproxy_output(gateway, "trace");
    assert_eq!(nobody.status.code(), Some(1));
    assert!(nobody.said.contains("no tproxy runs"), "{}", nobody.said);
    let tproxy = world.tproxy(&format!("{FORWARDED} --action reject"));
    let mut trace = trace(gateway, "");
    drop(tproxy);
    assert!(trace.wait(PATIENCE).unwrap().success(), "{trace}");
}
