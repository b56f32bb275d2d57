use std::{
    io::Read as _,
    net::{TcpStream, UdpSocket},
    time::Instant,
};

use serde_json::Value;

use super::*;

/// Where the server echoes.
const ECHO: u16 = 7;

const RULE: &str = "--scope forwarded --interface lan --action direct --drain-timeout 60s";

fn world() -> World {
    let world = World::new();
    for family in Family::ALL {
        serve(&world.net.server, (family.server(), ECHO), echo);
    }
    world
}

fn echo_connection(world: &World, family: Family, text: &str) -> TcpStream {
    let stream = connect(&world.net.client, (family.server(), ECHO)).unwrap();
    assert_echo(&stream, text, &"echo");
    stream
}

/// Asks until the answer is as it should be.
#[track_caller]
fn until(world: &World, args: &str, condition: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask_json(world, args);
        if condition(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "tproxy {args}: {answer:#}");
    }
}

#[test]
fn status_and_rules_count_what_happens() {
    let world = world();
    let tproxy = world.tproxy(RULE);
    let live = echo_connection(&world, Family::V4, "hello");
    let status = until(&world, "status --json", |status| status["connections"]["bytes_down"] == 5);
    assert_eq!(status["name"], world.net.gateway.name());
    assert_eq!((&status["state"], &status["pid"]), (&"running".into(), &tproxy.pid().into()));
    assert_eq!(status["live"]["connections"], 1);
    assert_eq!(status["packets"]["steer_rule"], 1);
    let rules = ask_json(&world, "rules --json");
    assert_eq!(
        (&rules[0]["name"], &rules[0]["hits"], &rules[0]["live"]),
        (&"cli".into(), &1.into(), &1.into())
    );
    let text = ask(&world, "status");
    assert!(text.contains("1 connections, 0 sessions") && text.contains("lan ingress"), "{text}");
    drop(live);
    until(&world, "status --json", |status| status["connections"]["eof"] == 1);
    assert_eq!(ask_json(&world, "rules --json")[0]["live"], 0);
}

#[test]
fn hits_are_counted_for_rules_that_the_kernel_carries_out() {
    for action in ["reject", "drop", "pass"] {
        let world = world();
        let tproxy = world.tproxy(&format!("{FORWARDED} --port 80 --action {action}"));
        for family in Family::ALL {
            curl(&world.net.client, "--connect-timeout 0.5", family.server(), 80);
            // Not the rule's.
            drop(echo_connection(&world, family, "x"));
        }
        let rules = ask_json(&world, "rules --json");
        assert_eq!(rules[0]["action"], action, "{}", *tproxy);
        assert_eq!(rules[0]["hits"], 2, "{action}: {rules}\n{}", *tproxy);
    }
}

#[test]
fn hits_survive_that_the_rules_are_written_anew() {
    let world = world();
    let _tproxy = world.tproxy("--scope forwarded --interface lan --action direct --source client");
    drop(echo_connection(&world, Family::V4, "one"));
    // Every new interface is one that replies may come by.
    for number in 0..3 {
        let [hooks, name] = [2 + 2 * number, number].map(|number| number.to_string());
        world.net.gateway.ip(&format!("link add new{name} type veth peer name peer{name}")).unwrap();
        until(&world, "status --json", |status| {
            status["hooks"].as_array().unwrap().len() > hooks.parse().unwrap()
        });
        drop(echo_connection(&world, Family::V6, "more"));
    }
    assert_eq!(ask_json(&world, "rules --json")[0]["hits"], 4);
}

#[test]
fn flows_show_what_they_move_while_they_live() {
    let world = world();
    let _tproxy = world.tproxy(RULE);
    let streams = Family::ALL.map(|family| echo_connection(&world, family, &"x".repeat(1000)));
    for (family, stream) in Family::ALL.iter().zip(&streams) {
        let client = stream.local_addr().unwrap().to_string();
        let flows =
            until(&world, &format!("flows --json --client {client}"), |flows| flows[0]["bytes_down"] == 1000);
        assert_eq!(flows.as_array().unwrap().len(), 1, "{flows:#}");
        let flow = &flows[0];
        let server = std::net::SocketAddr::new(family.server(), ECHO).to_string();
        for (key, expected) in [
            ("protocol", "tcp"),
            ("scope", "forwarded"),
            ("client", &client),
            ("original_destination", &server),
            ("upstream", &server),
            ("rule", "cli"),
            ("state", "relaying"),
        ] {
            assert_eq!(flow[key], expected, "{key}");
        }
        assert_eq!(flow["bytes_up"], 1000);
        assert_echo(stream, &"y".repeat(500), &"more");
        until(&world, &format!("flows --json --id {}", flow["id"]), |flows| flows[0]["bytes_up"] == 1500);
    }
    let json: Value = serde_json::from_str(&curled(&world, &[], "/flows?proto=tcp&dst=:7")).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
    let text = ask(&world, "flows --dst :7");
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.lines().next().unwrap().contains("ORIGINAL DESTINATION"), "{text}");
    drop(streams);
    until(&world, "flows --json", |flows| flows == &serde_json::json!([]));
}

#[test]
fn who_follows_sees_flows_come_and_go() {
    let world = world();
    let _tproxy = world.tproxy(RULE);
    let live = echo_connection(&world, Family::V4, "before");
    let follow = world.net.gateway.start(&format!("{} flows --follow", binary().display())).unwrap();
    follow.wait_line(&["live", &live.local_addr().unwrap().to_string()], PATIENCE).unwrap();
    let new = echo_connection(&world, Family::V6, "new");
    let client = new.local_addr().unwrap().to_string();
    follow.wait_line(&["began", &client, "rule=cli"], PATIENCE).unwrap();
    drop(new);
    follow.wait_line(&["ended", &client, "up=3 down=3", "end=eof"], PATIENCE).unwrap();
}

#[test]
fn a_connection_that_is_closed_is_reset_and_no_other() {
    let world = world();
    let tproxy = world.tproxy(RULE);
    let [mut one, other] = Family::ALL.map(|family| echo_connection(&world, family, "x"));
    let client = one.local_addr().unwrap();
    let flows = ask_json(&world, &format!("flows --json --client {client}"));
    assert_eq!(ask(&world, &format!("close {}", flows[0]["id"])), "closed 1 flow");
    assert_eq!(one.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    tproxy.wait_line(&["closed", &client.to_string(), "end=closed"], PATIENCE).unwrap();
    assert_echo(&other, "still there", &*tproxy);
    assert_eq!(
        curled(&world, &["-X", "POST"], "/close?proto=tcp").replace(['\n', ' '], ""),
        "{\"closed\":1}"
    );
    let refused = tproxy_output(&world.net.gateway, "close --proto tcp");
    assert!(!refused.status.success() && refused.said.contains("no such flow"), "{}", refused.said);
}

#[test]
fn a_session_that_is_closed_ends() {
    let world = World::new();
    let tproxy = world.tproxy(&format!("{FORWARDED} --port 4000 --action respond=hello"));
    let client = world.net.client.enter(|| UdpSocket::bind((Family::V4.client(), 0))).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let exchange = || {
        client.send_to(b"hi", (Family::V4.public(), 4000)).unwrap();
        let mut buffer = [0; 10];
        let (length, _) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"hello");
    };
    exchange();
    let flows = until(&world, "flows --json --proto udp", |flows| flows[0]["bytes_down"] == 5);
    assert_eq!((&flows[0]["state"], &flows[0]["bytes_up"]), (&"answering".into(), &2.into()));
    assert_eq!(ask(&world, "close --proto udp"), "closed 1 flow");
    tproxy.wait_line(&["closed", "end=closed"], PATIENCE).unwrap();
    exchange();
    let again = until(&world, "flows --json --proto udp", |flows| !flows[0].is_null());
    assert_ne!(again[0]["id"], flows[0]["id"]);
}

#[test]
fn drain_takes_no_new_flow_and_stops_with_the_last_live_one() {
    let world = world();
    let mut tproxy = world.tproxy(RULE);
    let live = echo_connection(&world, Family::V4, "x");
    let said = ask(&world, "drain");
    assert!(said.contains("1 live") && said.contains("1m00s"), "{said}");
    tproxy.wait_line(&["draining"], PATIENCE).unwrap();
    world.curl(Family::V4.server(), 80).assert_nginx(
        (Family::V4.server(), 80).into(),
        Family::V4.client(),
        &*tproxy,
    );
    assert_eq!(ask_json(&world, "status --json")["state"], "draining");
    assert_echo(&live, "still there", &*tproxy);
    drop(live);
    assert!(tproxy.wait(PATIENCE).unwrap().success(), "{}", *tproxy);
    let gone = tproxy_output(&world.net.gateway, "status");
    assert_eq!(gone.status.code(), Some(1));
    assert!(gone.said.contains("answers at") && gone.said.lines().count() == 1, "{}", gone.said);
}

#[test]
fn drain_with_nothing_live_is_answered_before_the_end() {
    let world = World::new();
    let mut tproxy = world.tproxy(RULE);
    assert!(ask(&world, "drain").contains("0 live"));
    assert!(tproxy.wait(PATIENCE).unwrap().success(), "{}", *tproxy);
}
