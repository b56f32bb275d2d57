//! How connections end when it is not in order.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    num::NonZeroUsize,
    thread,
    time::{Duration, Instant},
};

use tproxy_common::rule::MAX_RULES;

use super::rig::*;
use crate::{
    config::{Action, RuleLimits, RuleTimeouts, Source, Timeouts},
    family::Family,
    generation::RuleNumber,
    mark::Mark,
    socket,
    tcp::End,
};

#[test]
fn a_reset_by_the_client_reaches_the_server() {
    let (rig, server) = upstream();
    let (client, upstream) = rig.pair(&server);
    reset(client);
    assert_reset(upstream);
    rig.assert_end(End::ClientReset);
}

#[test]
fn a_reset_by_the_server_reaches_the_client() {
    let (rig, server) = upstream();
    let (client, upstream) = rig.pair(&server);
    reset(upstream);
    assert_reset(client);
    rig.assert_end(End::UpstreamReset);
}

#[test]
fn a_reset_overtakes_data_that_is_stuck() {
    let (rig, server) = upstream();
    let (client, upstream) = rig.pair(&server);
    write_until_stuck(&client);
    reset(client);
    wait_for_reset(&upstream);
    rig.assert_end(End::ClientReset);

    let (rig, server) = self::upstream();
    let (client, upstream) = rig.pair(&server);
    write_until_stuck(&upstream);
    reset(upstream);
    wait_for_reset(&client);
    rig.assert_end(End::UpstreamReset);
}

#[test]
fn a_reset_of_the_reader_reaches_the_writer_that_is_stuck() {
    let (rig, server) = upstream();
    let (client, upstream) = rig.pair(&server);
    write_until_stuck(&client);
    reset(upstream);
    wait_for_reset(&client);
    rig.assert_end(End::UpstreamReset);
}

#[test]
fn a_reset_after_the_end_of_data_is_noticed() {
    let (rig, server) = upstream();
    let (client, mut upstream) = rig.pair(&server);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(upstream.read(&mut [0]).unwrap(), 0);
    reset(client);
    wait_for_reset(&upstream);
    rig.assert_end(End::ClientReset);

    let (rig, server) = self::upstream();
    let (mut client, upstream) = rig.pair(&server);
    upstream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    reset(upstream);
    wait_for_reset(&client);
    rig.assert_end(End::UpstreamReset);
}

#[test]
fn a_client_is_reset_when_the_upstream_refuses() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let rig = Rig::new(Action::Upstream(nobody.into()));
    assert_reset(rig.client());
    rig.assert_end(End::ConnectRefused);
}

#[test]
fn a_client_is_reset_when_the_upstream_is_silent() {
    let hole = socket::black_hole(Family::V4, Mark::DEFAULT).unwrap();
    let silent = hole.local_addr().unwrap().as_socket().unwrap();
    let timeouts = Timeouts { connect: Duration::from_millis(200), ..TIMEOUTS };
    let rig = Rig::with(Action::Upstream(silent.into()), |setup| {
        setup.generations = generations(rule(Action::Upstream(silent.into()), Source::Host), timeouts)
    });
    assert_reset(rig.client());
    rig.assert_end(End::ConnectTimeout);
}

#[test]
fn connecting_is_given_up_with_the_client() {
    let hole = socket::black_hole(Family::V4, Mark::DEFAULT).unwrap();
    let silent = hole.local_addr().unwrap().as_socket().unwrap();
    let rig = Rig::new(Action::Upstream(silent.into()));
    reset(rig.client());
    let started = Instant::now();
    // The client may be gone before it is accepted, or after.
    while rig.counted().accepted == 0 {
        thread::yield_now();
    }
    rig.assert_end(End::ClientReset);
    assert!(started.elapsed() < TIMEOUTS.connect / 2);
}

#[test]
fn a_client_that_has_no_more_to_send_is_connected_nevertheless() {
    let (rig, server) = upstream();
    let mut client = rig.client();
    client.write_all(b"all").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (mut upstream, _) = server.accept().unwrap();
    let mut request = String::new();
    upstream.read_to_string(&mut request).unwrap();
    assert_eq!(request, "all");
    drop((client, upstream));
    rig.assert_end(End::Eof);
}

#[test]
fn only_silence_is_idle() {
    let idle = Duration::from_millis(300);
    let (rig, server) = upstream_with(|setup| {
        let rule = rule(setup.generations.latest().rules()[0].treatment.action.clone(), Source::Host);
        setup.generations = generations(rule, Timeouts { idle, ..TIMEOUTS });
    });
    let (mut client, mut upstream) = rig.pair(&server);
    let started = Instant::now();
    while started.elapsed() < 3 * idle {
        client.write_all(b"x").unwrap();
        upstream.read_exact(&mut [0]).unwrap();
    }
    let silent_since = Instant::now();
    assert_reset(client);
    assert!(silent_since.elapsed() >= idle - Duration::from_millis(50));
    assert_reset(upstream);
    rig.assert_end(End::IdleTimeout);
}

#[test]
fn a_rule_has_its_own_idle_time() {
    let idle = Duration::from_millis(300);
    let (rig, server) = upstream_with(|setup| {
        let timeouts = RuleTimeouts { idle: Some(idle), ..RuleTimeouts::default() };
        change(setup, |treatment| treatment.timeouts = timeouts);
    });
    let (client, _upstream) = rig.pair(&server);
    assert_reset(client);
    rig.assert_end(End::IdleTimeout);
}

#[test]
fn a_rule_has_no_more_connections_than_its_limit() {
    let (rig, server) = upstream_with(|setup| {
        let limits = RuleLimits { connections: NonZeroUsize::new(2), ..RuleLimits::default() };
        change(setup, |treatment| treatment.limits = limits);
    });
    let [first, second] = [(); 2].map(|()| rig.pair(&server));
    assert_reset(rig.client());
    drop(first);
    // Its place is free once both sides are closed, of which no word comes.
    let deadline = Instant::now() + PATIENCE;
    while rig.counted().ended(End::Eof) == 0 {
        assert!(Instant::now() < deadline, "{}", rig.counted());
        thread::yield_now();
    }
    let third = rig.pair(&server);
    assert_reset(rig.client());
    drop((second, third));
    let counted = rig.finish();
    assert_eq!((counted.accepted, counted.ended(End::OverLimit)), (5, 2), "{counted}");
}

#[test]
fn a_connection_to_ourselves_is_reset() {
    let rig = Rig::with(Action::Direct, |setup| {
        setup.bound = setup.listeners.iter().map(|l| l.local_addr().unwrap().as_socket().unwrap()).collect();
    });
    assert_reset(rig.client());
    rig.assert_end(End::Loop);
}

#[test]
fn a_connection_that_nobody_decided_is_reset() {
    for decision in [None, Some(RuleNumber(7)), Some(RuleNumber(MAX_RULES as u32))] {
        let rig = Rig::with(Action::Direct, |setup| setup.decisions = Box::new(Always(decision)));
        assert_reset(rig.client());
        rig.assert_end(End::Undecided);
    }
}

#[test]
fn a_client_port_that_is_taken_is_replaced_and_counted() {
    // The client itself holds it, on this very host.
    let (rig, server) = upstream_with(|setup| {
        change(setup, |treatment| treatment.source = Source::ClientPort);
    });
    let (client, upstream): (TcpStream, TcpStream) = rig.pair(&server);
    assert_ne!(upstream.peer_addr().unwrap(), client.local_addr().unwrap());
    drop((client, upstream));
    assert_eq!(rig.finish().source_fallbacks, 1);
}
