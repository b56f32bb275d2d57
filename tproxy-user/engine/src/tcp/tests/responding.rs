//! Answers in place of a server.

use std::{
    io::{Read, Write},
    net::Shutdown,
    time::{Duration, Instant},
};

use super::rig::*;
use crate::{config::Action, tcp::End};

/// Sends a request; returns the whole answer, whose end must be in order.
fn answer_to(request: &[u8]) -> String {
    let rig = Rig::new(Action::Respond("hello world".into()));
    let mut client = rig.client();
    client.write_all(request).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    drop(client);
    rig.assert_end(End::Eof);
    answer
}

#[test]
fn http_is_answered_in_http() {
    let answer = answer_to(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\nContent-Length: 11\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nhello world"), "{answer}");
}

#[test]
fn head_is_answered_without_a_body() {
    assert!(answer_to(b"HEAD / HTTP/1.0\r\n\r\n").ends_with("\r\n\r\n"));
}

#[test]
fn anything_else_is_answered_at_once() {
    let started = Instant::now();
    assert_eq!(answer_to(b"EHLO example\r\n"), "hello world\n");
    assert!(started.elapsed() < Duration::from_millis(900));
}

#[test]
fn silence_is_answered_after_a_second() {
    for request in ["", "GET / HT"] {
        let started = Instant::now();
        assert_eq!(answer_to(request.as_bytes()), "hello world\n");
        assert!(started.elapsed() >= Duration::from_millis(990));
    }
}

#[test]
fn a_large_body_does_not_cost_the_answer() {
    let mut request = b"POST / HTTP/1.1\r\nHost: example\r\nContent-Length: 8000000\r\n\r\n".to_vec();
    request.resize(request.len() + 8_000_000, b'x');
    assert!(answer_to(&request).ends_with("\r\n\r\nhello world"));
}

#[test]
fn a_client_that_ends_at_once_is_answered() {
    let rig = Rig::new(Action::Respond("hello".into()));
    let mut client = rig.client();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello\n");
    rig.assert_end(End::Eof);
}
