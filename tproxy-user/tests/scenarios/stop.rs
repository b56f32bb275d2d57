//! Start, stop and crash in the middle of traffic.

use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    clean::{Snapshot, assert_cleanup},
    support::*,
};

/// Where the server echoes.
const ECHO: u16 = 7;

fn world_with_echo() -> World {
    let world = World::new();
    for family in Family::ALL {
        serve(&world.net.server, (family.server(), ECHO), echo);
    }
    world
}

fn echo_connection(world: &World, family: Family) -> TcpStream {
    connect(&world.net.client, (family.server(), ECHO)).unwrap()
}

#[test]
fn kill_9_does_not_touch_a_hundred_live_connections_that_were_passed() {
    for engine in ENGINES {
        let world = world_with_echo();
        let before = Snapshot::take(&world.net.gateway);
        let mut tproxy = world.tproxy(&format!("{FORWARDED} --port 80 --action direct --steer {engine}"));
        let live: Vec<_> = (0..100).map(|number| echo_connection(&world, Family::ALL[number % 2])).collect();
        let assert_alive = |when: &str| {
            for (number, stream) in live.iter().enumerate() {
                assert_echo(stream, &format!("{number} {when}"), &engine);
            }
        };
        assert_alive("while running");
        world.curl(Family::V4.server(), 80).assert_nginx(
            (Family::V4.server(), 80).into(),
            Family::V4.wan(),
            &*tproxy,
        );
        tproxy.kill9();
        assert_alive("after kill -9");
        assert_cleanup(&world.net.gateway);
        assert_alive("after cleanup");
        before.assert_same(&world.net.gateway, &*tproxy);
        assert_eq!(retransmitted(&world.net.client), 0, "{engine}");
    }
}

#[test]
fn after_a_stop_and_after_kill_9_the_same_curl_takes_the_normal_route() {
    for engine in ENGINES {
        let world = World::new();
        let assert_taken = |tproxy: &Tproxy| {
            for family in Family::ALL {
                world.curl(family.public(), 80).assert_body("hello", &**tproxy);
            }
        };
        let assert_normal = |tproxy: &Tproxy, when: &str| {
            for family in Family::ALL {
                let got = world.curl(family.public(), 80);
                let context = format!("{engine} {when}\n{}", **tproxy);
                got.assert_nginx((family.public(), 80).into(), family.client(), &context);
            }
            assert_eq!(retransmitted(&world.net.client), 0, "{engine} {when}");
        };
        let start =
            || world.tproxy(&format!("{FORWARDED} --port 80 --action respond=hello --steer {engine}"));
        let mut tproxy = start();
        assert_taken(&tproxy);
        tproxy.kill9();
        // Another source port each time, so what lingers of the old connections does not meet these.
        assert_normal(&tproxy, "after kill -9");
        let mut tproxy = start();
        assert_taken(&tproxy);
        tproxy.signal(Signal::TERM);
        tproxy.wait(PATIENCE).unwrap();
        assert_normal(&tproxy, "after SIGTERM");
        tproxy = start();
        assert_taken(&tproxy);
    }
}

#[test]
fn start_does_not_touch_connections_that_live_already() {
    for engine in ENGINES {
        let world = world_with_echo();
        // Without probes for a lost tail, which go out after few milliseconds of a busy machine, only what got lost is
        // sent again.
        world.net.client.set_sysctl("net.ipv4.tcp_early_retrans", "0").unwrap();
        let live = Family::ALL.map(|family| echo_connection(&world, family));
        for source in ["host", "client"] {
            let tproxy =
                world.tproxy(&format!("{FORWARDED} --action direct --source {source} --steer {engine}"));
            for stream in &live {
                assert_echo(stream, &"before and after".repeat(10_000), &*tproxy);
                let client = stream.local_addr().unwrap().to_string();
                assert!(!tproxy.lines().iter().any(|line| line.contains(&client)), "{}", *tproxy);
            }
            // The rule does take such connections, just not these.
            let new = echo_connection(&world, Family::V4);
            assert_echo(&new, "new", &*tproxy);
            tproxy.wait_line(&[&new.local_addr().unwrap().to_string()], PATIENCE).unwrap();
        }
        assert_eq!(retransmitted(&world.net.client), 0, "{engine}");
    }
}

#[test]
fn sigterm_drains_the_live_and_passes_the_new() {
    for (engine, source) in ENGINES.iter().flat_map(|engine| [(engine, "host"), (engine, "client")]) {
        let world = world_with_echo();
        let before = Snapshot::take(&world.net.gateway);
        let mut tproxy = world.tproxy(&format!(
            "{FORWARDED} --action direct --source {source} --steer {engine} --drain-timeout 10m"
        ));
        let live = Family::ALL.map(|family| echo_connection(&world, family));
        for stream in &live {
            assert_echo(stream, "before the stop", &*tproxy);
            tproxy.wait_line(&[&stream.local_addr().unwrap().to_string()], PATIENCE).unwrap();
        }
        tproxy.signal(Signal::TERM);
        for family in Family::ALL {
            wait_until_passed(&world, family, &tproxy);
        }
        for stream in live {
            assert_echo(&stream, &"while draining".repeat(10_000), &*tproxy);
        }
        // The last of them is closed now: the end comes by itself, long before the limit.
        let status = tproxy.wait(PATIENCE).unwrap_or_else(|error| panic!("{engine} {source}: {error}"));
        assert!(status.success(), "{status}\n{}", *tproxy);
        before.assert_same(&world.net.gateway, &*tproxy);
    }
}

#[test]
fn the_drain_limit_ends_what_does_not_end() {
    let world = world_with_echo();
    let mut tproxy = world.tproxy(&format!("{FORWARDED} --action direct --drain-timeout 1s"));
    let mut live = echo_connection(&world, Family::V4);
    assert_echo(&live, "before the stop", &*tproxy);
    let asked = Instant::now();
    tproxy.signal(Signal::TERM);
    assert!(tproxy.wait(PATIENCE).unwrap_or_else(|error| panic!("{error}")).success(), "{}", *tproxy);
    assert!(asked.elapsed() >= Duration::from_millis(900), "it did not drain\n{}", *tproxy);
    assert_ended(&mut live, &tproxy);
}

#[test]
fn a_second_signal_means_now() {
    for (first, second) in
        [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::INT), (Signal::TERM, Signal::INT)]
    {
        let world = world_with_echo();
        let before = Snapshot::take(&world.net.gateway);
        let mut tproxy = world.tproxy(&format!("{FORWARDED} --action direct --drain-timeout 10m"));
        let mut live = echo_connection(&world, Family::V4);
        assert_echo(&live, "before the stop", &*tproxy);
        tproxy.signal(first);
        wait_until_passed(&world, Family::V4, &tproxy);
        assert_echo(&live, "while draining", &*tproxy);
        tproxy.signal(second);
        tproxy.wait(PATIENCE).unwrap_or_else(|error| panic!("{first:?} {second:?}: {error}"));
        before.assert_same(&world.net.gateway, &*tproxy);
        assert_ended(&mut live, &tproxy);
    }
}

/// Asks until a new connection is no longer taken: nginx then sees the client itself, from the very port.
fn wait_until_passed(world: &World, family: Family, tproxy: &Tproxy) {
    let deadline = Instant::now() + PATIENCE;
    let listener = listen(&world.net.server, SocketAddr::new(family.public(), 4_000));
    loop {
        let stream = connect(&world.net.client, (family.public(), 4_000)).unwrap();
        if accept(&listener).peer_addr().unwrap() == stream.local_addr().unwrap() {
            return;
        }
        assert!(Instant::now() < deadline, "new connections are still taken\n{}", **tproxy);
    }
}

/// The connection has come to an end by FIN or RST; it does not hang.
fn assert_ended(stream: &mut TcpStream, tproxy: &Tproxy) {
    match stream.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}\n{}", **tproxy),
    }
}
