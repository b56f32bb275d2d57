//! `tproxy explain`: the running program's own word, without a trace of the question; and the rules' alone.

use serde_json::Value;

use crate::{matching::Cgroup, support::*};

/// What explain says of a flow, and that it ended well.
#[track_caller]
fn explain(namespace: &Namespace, args: &str) -> Vec<Value> {
    let ended = tproxy_output(namespace, &format!("explain --json {args}"));
    assert!(ended.status.success(), "{args}: {}", ended.said);
    serde_json::from_str(&ended.said).unwrap_or_else(|error| panic!("{error}: {}", ended.said))
}

/// Verdict, reason and rule of the one instance.
#[track_caller]
fn verdict(namespace: &Namespace, args: &str) -> (String, String, Option<u64>) {
    let explained = explain(namespace, args);
    assert_eq!(explained.len(), 1, "{explained:#?}");
    let text = |key: &str| explained[0][key].as_str().expect("text").to_owned();
    (text("verdict"), text("reason"), explained[0]["rule"].as_u64())
}

#[track_caller]
fn assert_verdict(namespace: &Namespace, args: &str, verdict_reason: (&str, &str), rule: Option<u64>) {
    let (verdict, reason, by) = verdict(namespace, args);
    assert_eq!(
        ((&*verdict, &*reason), by),
        (verdict_reason, rule),
        "{args}: {:#?}",
        explain(namespace, args)
    );
}

#[test]
fn what_it_takes_to_ask_a_running_instance_is_said_with_the_capabilities_of_run() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let five =
        "setpriv --bounding-set=-all,+net_raw,+net_bind_service,+net_admin,+bpf,+perfmon --inh-caps=-all";
    let line = |args: &str| format!("{five} {} {args}", binary().display());
    let running = gateway.start(&line(&format!("run {FORWARDED} --port 80 --action direct"))).unwrap();
    running.wait_line(&["ready"], PATIENCE).unwrap();
    let running = Tproxy::from(running);
    for args in ["explain tcp 10.1.0.2:5 8.8.8.8:80 --interface lan", "trace"] {
        let mut asking = gateway.start(&line(args)).unwrap();
        let status = asking.wait(PATIENCE).unwrap();
        let said = asking.lines().join("\n");
        assert_eq!((status.code(), asking.lines().len()), (Some(1), 1), "{args}: {said}\n{}", *running);
        assert!(said.contains("CAP_SYS_ADMIN") && said.contains("as root"), "{args}: {said}");
    }
    assert_verdict(gateway, "tcp 10.1.0.2:5 8.8.8.8:80 --interface lan", ("steer", "steer_rule"), Some(0));
}

#[test]
fn the_running_program_answers_and_nothing_of_the_question_is_left() {
    for family in Family::ALL {
        for engine in ENGINES {
            let world = World::new();
            let gateway = &world.net.gateway;
            let rule =
                format!("{FORWARDED} --port 80-90 --except 8.8.4.4 --action respond=taken --steer {engine}");
            let mut tproxy = world.tproxy(&rule);
            let [client, public, wan] = [family.client(), family.public(), family.wan()];
            let from = std::net::SocketAddr::new(client, 5555);
            let to = |address, port| std::net::SocketAddr::new(address, port);
            for protocol in ["tcp", "udp"] {
                let ask = |to: std::net::SocketAddr| format!("{protocol} {from} {to} --interface lan");
                assert_verdict(gateway, &ask(to(public, 80)), ("steer", "steer_rule"), Some(0));
                assert_verdict(gateway, &ask(to(public, 91)), ("pass", "pass_no_rule"), None);
                assert_verdict(
                    gateway,
                    &(ask(to(wan, 80)) + " --scope forwarded"),
                    ("pass", "pass_host_address"),
                    None,
                );
                let other = ask(to(public, 80)).replace("lan", "wan");
                let (verdict, reason, _) = verdict(gateway, &other);
                assert!(verdict == "pass" && reason == "no_hook", "{other}: {verdict} {reason}");
            }
            if family == Family::V4 {
                let line = format!("tcp {from} 8.8.4.4:80 --interface lan");
                assert_verdict(gateway, &line, ("pass", "pass_no_rule"), None);
            }
            // Asked, nothing was counted: what the end says is what this one flow made.
            world.curl(public, 80).assert_body("taken", &*tproxy);
            assert_eq!(counted_at_the_end(&mut tproxy, "steer_rule"), 1, "{}", *tproxy);
            let lines = tproxy.lines().join("\n");
            assert!(!lines.contains("pass_no_rule"), "{lines}");
            assert!(!lines.contains("pass_host_address"), "{lines}");
        }
    }
}

#[test]
fn a_flow_that_was_asked_about_is_decided_anew() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let tproxy = world.tproxy(&format!("{FORWARDED} --port 7 --action respond=taken"));
    let socket = world.net.client.enter(|| std::net::UdpSocket::bind("10.1.0.2:5555")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // Had the question been remembered as one that passes, so would be the datagram.
    let question = "udp 10.1.0.2:5555 8.8.8.8:7 --interface lan";
    for _ in 0..2 {
        assert_verdict(gateway, question, ("steer", "steer_rule"), Some(0));
        assert_verdict(
            gateway,
            "udp 8.8.8.8:7 10.1.0.2:5555 --interface lan",
            ("pass", "pass_no_rule"),
            None,
        );
    }
    socket.send_to(b"?", "8.8.8.8:7").unwrap();
    let mut answer = [0; 16];
    let length = socket.recv(&mut answer).unwrap_or_else(|error| panic!("{error}\n{}", *tproxy));
    assert_eq!(&answer[..length], b"taken", "{}", *tproxy);
    // Now it is known, and the program says so, which the rules alone cannot.
    let (verdict, reason, _) = verdict(gateway, question);
    assert_eq!(verdict, "steer");
    assert!(reason == "steer_socket_owned" || reason == "steer_decided", "{reason}");
}

#[test]
fn outbound_knows_the_sender_and_inbound_asks_the_same_policy() {
    let world = World::new();
    let (gateway, server) = (&world.net.gateway, &world.net.server);
    let _outbound = tproxy_in(gateway, "--scope outbound --to 8.8.8.8 --uid 1234 --action direct");
    let ask = "tcp 10.2.0.1:5555 8.8.8.8:80 --interface wan";
    assert_verdict(gateway, &format!("{ask} --uid 1234"), ("steer", "steer_rule"), Some(0));
    assert_verdict(gateway, &format!("{ask} --uid 1235"), ("pass", "pass_no_rule"), None);
    assert_verdict(gateway, ask, ("pass", "pass_no_rule"), None);
    let _inbound = tproxy_in(server, "--scope inbound --port 80 --action reject");
    assert_verdict(server, "tcp 10.1.0.2:5 10.2.0.2:80", ("reject", "reject_rule"), Some(0));
    assert_verdict(server, "tcp 10.1.0.2:5 10.2.0.2:81", ("pass", "pass_no_rule"), None);
}

#[test]
fn a_cgroup_is_joined_for_the_question() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let cgroup = Cgroup::new();
    let path = cgroup.0.display();
    let _tproxy = tproxy_in(gateway, &format!("--scope outbound --cgroup {path} --action direct"));
    let ask = "udp 10.2.0.1:5555 8.8.8.8:53 --interface wan";
    let inside = verdict(gateway, &format!("{ask} --cgroup {path}"));
    let outside = verdict(gateway, ask);
    assert_eq!((inside.1.as_str(), inside.2), ("steer_rule", Some(0)));
    assert_eq!((outside.1.as_str(), outside.2), ("pass_no_rule", None));
}

#[test]
fn without_an_instance_the_rules_are_asked() {
    let host = Namespace::new("rules").unwrap();
    host.ip("link add eth1 type dummy\nlink set eth1 up")
        .or_else(|_| host.ip("link add eth1 type veth peer name x"))
        .unwrap();
    let nobody = tproxy_output(&host, "explain tcp 10.0.0.5:5555 8.8.8.8:443 --interface eth1");
    assert_eq!(nobody.status.code(), Some(1), "{}", nobody.said);
    assert!(nobody.said.contains("no tproxy runs"), "{}", nobody.said);
    let given = "tcp 10.0.0.5:5555 8.8.8.8:443 --interface eth1 -- --scope forwarded --interface eth1";
    assert_verdict(&host, &format!("{given} --action drop"), ("drop", "drop_rule"), Some(0));
    assert_verdict(&host, &format!("{given} --port 80 --action drop"), ("pass", "pass_no_rule"), None);
    let text = tproxy_output(&host, &format!("explain {given} --action direct")).said;
    for line in [
        "port         443: rule 0",
        "match        rule 0 'cli' is the first",
        "verdict      steer, by reason steer_rule",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}
