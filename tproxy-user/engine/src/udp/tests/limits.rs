//! As many sessions as are allowed, and no more.

use std::{fs::File, net::UdpSocket, os::fd::AsRawFd, process::Command};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tproxy_netns::Family;

use super::rig::*;
use crate::{
    config::{Action, SessionLimits},
    udp::{End, io::Ends, session::Session},
};

#[test]
fn a_flood_ends_no_session_that_is_in_use_and_stays_within_its_bounds() {
    const TOTAL: usize = 50;
    const FLOOD: usize = 2000;
    let rig = Rig::with(rule(Action::Direct), |setup| {
        limited(setup, TIMEOUTS, SessionLimits { total: TOTAL, per_client: TOTAL });
    });
    let (client, server) = rig.pair(Family::V4);
    exchange(&client, &server);
    let from = rig.client(Family::V4);
    for port in 1..=FLOOD {
        // Not to the server, lest its queue overflows.
        from.send_to(b"flood", (Family::V4.server(), 10_000 + port as u16)).unwrap();
        let counted = rig.wait_until(|counted| counted.datagrams_up == 1 + port as u64);
        assert!(counted.active() <= TOTAL as u64, "{counted}");
    }
    exchange(&client, &server);
    let counted = rig.stop();
    let evicted = FLOOD + 1 - TOTAL;
    assert_eq!(
        (counted.sessions, counted.ended(End::Evicted)),
        (1 + FLOOD as u64, evicted as u64),
        "{counted}"
    );
}

#[test]
fn a_client_at_its_limit_gives_up_its_own_even_when_all_are_in_use() {
    let rig = Rig::with(rule(Action::Direct), |setup| {
        limited(setup, TIMEOUTS, SessionLimits { total: 10, per_client: 2 });
    });
    let server = rig.server(Family::V4.public(), PORT);
    let clients: Vec<UdpSocket> = (0..3).map(|_| rig.client_of(server.local_addr().unwrap())).collect();
    exchange(&clients[0], &server);
    exchange(&clients[1], &server);
    // IPv6 is another client.
    let (other, others_server) = rig.pair(Family::V6);
    exchange(&other, &others_server);
    exchange(&clients[2], &server);
    let counted = rig.counted();
    assert_eq!((counted.active(), counted.ended(End::Evicted)), (3, 1), "{counted}");
    exchange(&other, &others_server);
    exchange(&clients[1], &server);
    assert_eq!(rig.counted().sessions, 4, "neither was the one that ended");
}

#[test]
fn a_session_is_small() {
    let size = size_of::<Session>() + size_of::<Ends>();
    assert!(size <= 288, "{size} bytes a session");
}

const CHILD: &str = "TPROXY_TEST_OUT_OF_DESCRIPTORS";

/// The limit is one of the process, so the test needs one of its own.
#[test]
fn without_descriptors_the_oldest_make_room_and_nothing_spins() {
    const NAME: &str = "udp::tests::limits::without_descriptors_the_oldest_make_room_and_nothing_spins";
    if std::env::var_os(CHILD).is_some() {
        return out_of_descriptors();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "the test has another name");
}

fn out_of_descriptors() {
    let rig = Rig::new(rule(Action::Direct));
    let (in_use, server) = rig.pair(Family::V4);
    let [waste, late, later] = [0; 3].map(|_| rig.client_of(server.local_addr().unwrap()));
    exchange(&in_use, &server);
    waste.send(b"ping").unwrap();
    receive(&server, &mut [0; 10]);
    rig.wait_until(|counted| counted.sessions == 2);
    // A new descriptor would have the lowest number that is free; none is below the limit now.
    let next = File::open("/dev/null").unwrap();
    let limit = next.as_raw_fd() as u64;
    drop(next);
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum }).unwrap();

    exchange(&late, &server);
    let counted = rig.counted();
    assert_eq!((counted.out_of_descriptors, counted.ended(End::Evicted)), (1, 1), "{counted}");
    // Now all sessions are in use, and who has most has one fewer.
    exchange(&later, &server);
    let counted = rig.counted();
    assert_eq!((counted.ended(End::Evicted), counted.active()), (2, 2), "{counted}");
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    exchange(&later, &server);
}
