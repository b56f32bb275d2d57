use std::{
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use super::rig::*;

#[test]
fn who_says_nothing_or_not_all_is_cut_off() {
    let rig = Rig::new();
    let begin = |bytes: &[u8]| {
        let mut stream = rig.connect();
        stream.write_all(bytes).unwrap();
        stream
    };
    let started = Instant::now();
    let silent = [&b""[..], b"G", b"GET /status HTTP/1.1\r\nHost: "].map(begin);
    for mut stream in silent {
        let answer = read(&mut stream);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    let took = started.elapsed();
    assert!(took >= Duration::from_secs(4) && took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn who_says_too_much_is_cut_off() {
    let rig = Rig::new();
    let endless = "x".repeat(1_000_000);
    let head = rig.talk(format!("GET /status HTTP/1.1\r\nX: {endless}").as_bytes());
    assert!(head.is_empty() || head.starts_with("HTTP/1.1 431"), "{head}");
    let path = rig.talk(format!("GET /{endless} HTTP/1.1\r\n\r\n").as_bytes());
    assert!(
        path.is_empty() || path.starts_with("HTTP/1.1 414") || path.starts_with("HTTP/1.1 431"),
        "{path}"
    );
    for framing in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
        let body =
            rig.talk(format!("POST /drain HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{endless}").as_bytes());
        assert!(body.starts_with("HTTP/1.1 413"), "{framing}: {body}");
    }
    rig.json("GET", "/status", 200);
}

#[test]
fn more_connections_than_there_are_places_for_are_closed() {
    let rig = Rig::new();
    let mut held: Vec<_> = (0..32).map(|_| rig.connect()).collect();
    let mut refused = rig.connect();
    assert_eq!(refused.read(&mut [0]).unwrap_or_default(), 0, "it is closed at once");
    // Whoever goes makes room.
    held.clear();
    let deadline = Instant::now() + PATIENCE;
    while !rig.ask("GET", "/status").starts_with("HTTP/1.1 200") {
        assert!(Instant::now() < deadline, "no place becomes free");
    }
}

#[test]
fn who_takes_nothing_of_an_answer_is_cut_off() {
    let rig = Rig::new();
    let table = rig.flows.table(0);
    let selection = |port| tproxy::flows::Selection {
        protocol: tproxy_common::flow::Protocol::Tcp,
        scope: tproxy_common::rule::Scope::Forwarded,
        rule: "web".into(),
        client: tproxy::flow::ClientAddr(([10, 0, 0, 1], port).into()),
        dst: tproxy::flow::OriginalDst(([8, 8, 8, 8], 80).into()),
    };
    let _live: Vec<_> = (0..20_000).map(|port| table.enter(selection(port))).collect();
    let mut stream = rig.connect();
    stream.write_all(b"GET /flows HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_for_the_end(&stream);
}

/// Without taking what is there.
fn wait_for_the_end(stream: &UnixStream) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let mut polled = [PollFd::new(stream, PollFlags::RDHUP)];
    assert_eq!(
        poll(&mut polled, Some(&patience)).map_err(|error| error.kind()),
        Ok::<_, ErrorKind>(1),
        "it is kept"
    );
}
