//! The end of a worker, and the shortage of descriptors.

use std::{
    fs::File,
    io::{Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
    process::Command,
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use tokio::time::timeout;

use super::rig::*;
use crate::tcp::End;

#[test]
fn a_stop_resets_both_sides() {
    let (rig, server) = upstream();
    let (client, upstream) = rig.pair(&server);
    assert_eq!(rig.worker.live(), 1);
    rig.worker.stop_now();
    wait(rig.worker.ended());
    assert_reset(client);
    assert_reset(upstream);
    assert!(TcpStream::connect(rig.address).is_err(), "the listener is closed");
    rig.assert_end(End::Stopped);
}

#[test]
fn draining_waits_for_the_last_connection() {
    let (rig, server) = upstream();
    let (mut client, mut upstream) = rig.pair(&server);
    let drained_now = wait(async { timeout(Duration::ZERO, rig.worker.liveness().none()).await });
    assert!(drained_now.is_err(), "one is live");
    // Live ones go on meanwhile, and late ones still come.
    client.write_all(b"x").unwrap();
    upstream.read_exact(&mut [0]).unwrap();
    let (late, late_upstream) = rig.pair(&server);
    drop((client, upstream, late, late_upstream));
    wait(rig.worker.liveness().none());
    assert_eq!(rig.finish().ended(End::Eof), 2);
}

const CHILD: &str = "TPROXY_TEST_OUT_OF_DESCRIPTORS";

/// The limit is one of the process, so the test needs one of its own.
#[test]
fn without_descriptors_clients_are_reset_and_nothing_spins() {
    if std::env::var_os(CHILD).is_some() {
        return out_of_descriptors();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tcp::tests::stopping::without_descriptors_clients_are_reset_and_nothing_spins"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "the test has another name");
}

fn out_of_descriptors() {
    let (rig, server) = upstream();
    let (mut client, mut upstream) = rig.pair(&server);
    let waiting = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // A new descriptor would have the lowest number that is free; none is below the limit now.
    let next = File::open("/dev/null").unwrap();
    let limit = next.as_raw_fd() as u64;
    drop(next);
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum }).unwrap();

    waiting.connect(&rig.address.into()).unwrap();
    let waiting = TcpStream::from(waiting);
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_reset(waiting);
    let failures = rig.counted().out_of_descriptors;
    assert!((1..=3).contains(&failures), "{failures} failures");
    // Whoever was there before is served.
    client.write_all(b"x").unwrap();
    upstream.read_exact(&mut [0]).unwrap();

    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let late = rig.pair(&server);
    drop((client, upstream, late));
    rig.finish();
}
