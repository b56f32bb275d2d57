use std::io::{BufRead as _, BufReader, Write as _};

use hyper::{Method, StatusCode};
use proptest::prelude::*;
use tproxy::{
    flow::{ClientAddr, OriginalDst},
    flows::{Filter, LiveEntry, Selection, ShownFlow},
};
use tproxy_common::{flow::Protocol, rule::Scope};

use super::rig::*;
use crate::control::{
    FlowEvent, ShownRule, Status,
    routes::{Asked, understand},
};

fn enter(rig: &Rig, client: &str) -> LiveEntry {
    rig.flows.table(0).enter(Selection {
        protocol: Protocol::Tcp,
        scope: Scope::Forwarded,
        rule: "web".into(),
        client: ClientAddr(client.parse().unwrap()),
        dst: OriginalDst("8.8.8.8:80".parse().unwrap()),
    })
}

#[test]
fn everything_that_is_listed_is_answered() {
    let rig = Rig::new();
    for entry in rig.json("GET", "/", 200).as_array().unwrap() {
        let (method, path) = (entry["method"].as_str().unwrap(), entry["path"].as_str().unwrap());
        match path {
            "/flows/follow" => {}
            "/metrics" => assert!(rig.ask(method, path).ends_with("# EOF\n")),
            "/check" => drop(rig.json(method, "/check?file=%2Fetc%2Ftproxy.toml", 200)),
            "/close" => drop(rig.json(method, "/close?id=1", 200)),
            "/confirm" => assert_eq!(rig.json(method, path, 409)["error"], "one\ntwo"),
            _ => drop(rig.json(method, path, 200)),
        }
    }
}

#[test]
fn answers_are_what_the_client_side_understands() {
    let rig = Rig::new();
    let status: Status = serde_json::from_value(rig.json("GET", "/status", 200)).unwrap();
    assert_eq!((status.name.to_string().as_str(), status.live.connections), ("test", 4));
    assert_eq!(status.connections.get("connect_refused"), Some(&2));
    let live = enter(&rig, "10.0.0.1:1000");
    let rules: Vec<ShownRule> = serde_json::from_value(rig.json("GET", "/rules", 200)).unwrap();
    assert_eq!(rules.iter().map(|rule| (rule.hits, rule.live)).collect::<Vec<_>>(), [(7, 1), (5, 0)]);
    let flows: Vec<ShownFlow> =
        serde_json::from_value(rig.json("GET", "/flows?client=10.0.0.0/8", 200)).unwrap();
    assert_eq!(flows.iter().map(|flow| flow.id).collect::<Vec<_>>(), [live.id()]);
    assert_eq!(rig.json("GET", "/flows?proto=udp", 200), serde_json::json!([]));
    assert_eq!(rig.json("POST", "/close?id=7", 200)["closed"], 0);
    assert!(!live.is_closing());
    assert_eq!(rig.json("POST", "/close/all", 200)["closed"], 1);
    assert!(live.is_closing());
    assert_eq!(rig.json("POST", "/drain", 200)["live"], 3);
    let reloaded = serde_json::json!({"changes": "nothing changed", "confirm_within_seconds": 90.0});
    assert_eq!(rig.json("POST", "/reload?confirm=1m30s", 200), reloaded);
}

#[test]
fn what_makes_no_sense_is_refused_with_a_remedy() {
    let rig = Rig::new();
    for (method, path, status, words) in [
        ("GET", "/nonsense", 404, "GET / lists"),
        ("POST", "/status", 405, "GET"),
        ("GET", "/close?id=1", 405, "POST"),
        ("POST", "/close", 400, "/close/all"),
        ("GET", "/flows?client=nobody", 400, "ADDR:PORT"),
        ("GET", "/flows?colour=red", 400, "colour"),
        ("GET", "/status?x=1", 400, "no query"),
        ("POST", "/reload?confirm=soon", 400, "confirm=30s"),
        ("POST", "/reload?confirm=0s", 400, "confirm=30s"),
        ("GET", "/check", 400, "file=/PATH"),
        ("GET", "/check?file=tproxy.toml", 400, "file=/PATH"),
        ("GET", "/check?file=/a&file=/b", 400, "once"),
    ] {
        let error = rig.json(method, path, status)["error"].as_str().unwrap().to_owned();
        assert!(error.contains(words) && error.lines().count() == 1, "{method} {path}: {error}");
    }
}

#[test]
fn who_follows_is_told_of_what_was_what_begins_and_what_ends_until_the_instance_does() {
    let rig = Rig::new();
    let before = enter(&rig, "10.0.0.1:1000");
    let mut stream = rig.connect();
    stream.write_all(b"GET /flows/follow?client=10.0.0.0/8 HTTP/1.0\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap).skip_while(|line| !line.is_empty());
    lines.next();
    let mut next = || serde_json::from_str::<FlowEvent>(&lines.next().unwrap()).unwrap();
    assert!(matches!(next(), FlowEvent::Live(flow) if flow.id == before.id()));
    let _other = enter(&rig, "192.0.2.1:1");
    let live = enter(&rig, "10.0.0.2:1");
    assert!(matches!(next(), FlowEvent::Began(flow) if flow.id == live.id()));
    live.ended("eof");
    drop(live);
    assert!(matches!(next(), FlowEvent::Ended(flow) if flow.end.as_deref() == Some("eof")));
    rig.ending.cancel();
    assert!(lines.next().is_none());
}

fn word() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "/",
        "status",
        "flows",
        "follow",
        "close",
        "all",
        "id=1",
        "client=10.0.0.0/8",
        "proto=tcp",
        "&",
        "?",
        "=",
        "%2",
        "%ff",
        "dst=:443",
        "check",
        "reload",
        "confirm",
        "drain",
        "file=/a",
        "confirm=30s",
        "state=one_way",
    ]);
    prop_oneof![4 => known.prop_map(str::to_owned), 1 => ".{0,8}"]
}

fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(word(), 0..8).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn a_request_is_understood_or_refused_in_one_line(
        method in prop::sample::select(vec![Method::GET, Method::POST, Method::DELETE, Method::HEAD]),
        path in text(),
        query in text(),
    ) {
        match understand(&method, &path, &query) {
            Ok(asked) => {
                let changes = matches!(asked, Asked::Close(_) | Asked::Reload(_) | Asked::Confirm | Asked::Drain);
                prop_assert_eq!(&method, if changes { Method::POST } else { Method::GET });
                let absolute = !matches!(&asked, Asked::Check(file) if !file.is_absolute());
                prop_assert!(absolute, "{:?}", asked);
                let all = asked == Asked::Close(Filter::default());
                prop_assert!(!all || path == "/close/all", "{} {} closes all", path, query);
            }
            Err(refusal) => {
                prop_assert!(refusal.status.is_client_error(), "{:?}", refusal);
                prop_assert!(refusal.status != StatusCode::METHOD_NOT_ALLOWED || !refusal.error.is_empty());
            }
        }
    }
}

/// Bytes that are much like a request, or not at all.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::sample::select(vec![
            "GET ",
            "POST ",
            "/status",
            "/flows?",
            "/close",
            "/check?file=",
            "/reload?confirm=",
            " HTTP/1.1",
            " HTTP/1.0",
            "\r\n",
            "\n",
            "Host: a",
            "Content-Length: 5",
            "Content-Length: -1",
            "Transfer-Encoding: chunked",
            "Expect: 100-continue",
            "5\r\nabcde",
            "Connection: upgrade",
            ":",
            "\0",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

#[test]
fn whatever_is_sent_the_next_one_is_answered() {
    let rig = Rig::new();
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    proptest::test_runner::TestRunner::new(config)
        .run(&bytes(), |bytes| {
            let answer = rig.talk_and_hang_up(&bytes);
            prop_assert!(answer.is_empty() || answer.starts_with("HTTP/1."), "{:?}", answer);
            Ok(())
        })
        .unwrap();
    rig.json("GET", "/status", 200);
}
