//! The gateway gets another address while flows are live, as when a line is dialled anew.

use std::{
    io::{ErrorKind, Read as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use crate::{support::*, udp};

/// An UDP port on the server where everybody is told who they are.
const PORT: u16 = 7;

/// A TCP port on the server that sends back whatever comes.
const ECHO: u16 = 4007;

fn other(family: Family) -> IpAddr {
    let address = if family == Family::V4 { "10.2.0.77" } else { "fd00:2::77" };
    address.parse().expect("an address")
}

fn length(family: Family) -> u8 {
    if family == Family::V4 { 24 } else { 64 }
}

/// The uplink loses its address, and its routes by that; for a while there is none.
fn lose(world: &World, family: Family) {
    let address = family.wan();
    world.net.gateway.ip(&format!("addr del {address}/{} dev wan", length(family))).unwrap();
}

/// It gets another.
fn get(world: &World, family: Family) {
    let (flag, nodad) = if family == Family::V4 { ("-4", "") } else { ("-6", "nodad") };
    let gateway = &world.net.gateway;
    gateway.ip(&format!("addr add {}/{} dev wan {nodad}", other(family), length(family))).unwrap();
    gateway.run(&format!("ip {flag} route replace default via {}", family.server())).unwrap();
}

/// Sends until somebody answers who sees the address.
fn until_seen(client: &UdpSocket, family: Family, context: &str) {
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let (begun, mut buffer) = (Instant::now(), [0; 512]);
    loop {
        assert!(begun.elapsed() < PATIENCE, "{context}");
        // Without a way there it may be told of that.
        let _ = client.send_to(b"still here", (family.public(), PORT));
        let Ok((length, _)) = client.recv_from(&mut buffer) else { continue };
        let answer = String::from_utf8_lossy(&buffer[..length]);
        let seen: SocketAddr = answer.split(' ').next().and_then(|seen| seen.parse().ok()).unwrap();
        if seen.ip() == other(family) {
            return;
        }
    }
}

#[test]
fn udp_flows_go_on_from_the_new_address() {
    for family in Family::ALL {
        let upstream = SocketAddr::new(family.server(), PORT);
        for action in [
            "direct --nat endpoint-independent".to_owned(),
            "direct --nat per-destination".to_owned(),
            format!("upstream={upstream}"),
        ] {
            let world = World::new();
            udp::reflecting(&world, PORT);
            let tproxy = world.tproxy(&format!("{FORWARDED} --proto udp --action {action}"));
            let client = datagrams(&world.net.client, (family.client(), 0));
            let context = format!("{action}, {family:?}\n{}", *tproxy);
            udp::ask(&client, (family.public(), PORT).into(), "hello", &context);
            lose(&world, family);
            get(&world, family);
            until_seen(&client, family, &format!("{action}, {family:?}\n{}", *tproxy));
            let lines = tproxy.lines();
            assert_eq!(lines.iter().filter(|line| line.contains(" accepted ")).count(), 1, "{}", *tproxy);
        }
    }
}

#[test]
fn connections_whose_address_is_gone_are_reset_at_once() {
    let world = World::new();
    for family in Family::ALL {
        serve(&world.net.server, (family.public(), ECHO), echo);
        let mut tproxy = world.tproxy(&format!("{FORWARDED} --action direct"));
        let client = connect(&world.net.client, (family.public(), ECHO)).unwrap();
        assert_echo(&client, "hello", &*tproxy);
        lose(&world, family);
        let ended = (&client).read(&mut [0]).unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::ConnectionReset, "{}", *tproxy);
        tproxy.wait_line(&["closed", "end=address_gone"], PATIENCE).unwrap();
        get(&world, family);
        let client = connect(&world.net.client, (family.public(), ECHO)).unwrap();
        assert_echo(&client, "hello again", &*tproxy);
        drop(client);
        assert_eq!(counted_at_the_end(&mut tproxy, "address_gone"), 1, "{}", *tproxy);
    }
}

#[test]
fn connections_live_on_when_a_link_goes_down_and_comes_back() {
    let world = World::new();
    let family = Family::V4;
    serve(&world.net.server, (family.public(), ECHO), echo);
    let tproxy = world.tproxy(&format!("{FORWARDED} --action direct"));
    let client = connect(&world.net.client, (family.public(), ECHO)).unwrap();
    assert_echo(&client, "hello", &*tproxy);
    world.net.gateway.ip("link set wan down\nlink set wan up").unwrap();
    world.net.gateway.run(&format!("ip route replace default via {}", family.server())).unwrap();
    assert_echo(&client, "hello again", &*tproxy);
}

#[test]
fn flows_begin_and_end_with_ipv6() {
    let world = World::new();
    let (family, gateway) = (Family::V6, &world.net.gateway);
    serve(&world.net.server, (family.public(), ECHO), echo);
    let tproxy = world.tproxy(&format!("{FORWARDED} --action direct"));
    let client = connect(&world.net.client, (family.public(), ECHO)).unwrap();
    assert_echo(&client, "hello", &*tproxy);
    gateway.set_sysctl("net.ipv6.conf.wan.disable_ipv6", "1").unwrap();
    let ended = (&client).read(&mut [0]).unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::ConnectionReset, "{}", *tproxy);
    tproxy.wait_line(&["closed", "end=address_gone"], PATIENCE).unwrap();
    gateway.set_sysctl("net.ipv6.conf.wan.disable_ipv6", "0").unwrap();
    get(&world, family);
    let client = connect(&world.net.client, (family.public(), ECHO)).unwrap();
    assert_echo(&client, "hello again", &*tproxy);
}
