//! What connections may take of the instance, and what is left for others.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::{support::*, transparency::connect_as, udp::limits::open_descriptors};

/// Where everything is sent back.
const PORT: u16 = 7;

/// Another client: for a limit, all addresses of a /64 are one.
fn another(family: Family) -> IpAddr {
    let address = if family == Family::V4 { "10.1.0.3" } else { "fd00:9::2" };
    address.parse().expect("an address")
}

/// A connection that is relayed, or why not.
fn relayed(world: &World, from: IpAddr, to: IpAddr) -> io::Result<TcpStream> {
    let bind = |socket: &socket2::Socket| socket.bind(&SocketAddr::new(from, 0).into());
    let mut stream = connect_as(&world.net.client, (to, PORT).into(), bind)?;
    stream.write_all(b"!")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

#[test]
fn one_client_cannot_have_all_connections() {
    /// Two descriptors are a connection, and a client has a quarter of these.
    const DESCRIPTORS: usize = 512;
    let world = World::new();
    let (client, gateway) = (&world.net.client, &world.net.gateway);
    client.ip("addr add 10.1.0.3/24 dev eth0\naddr add fd00:9::2/64 dev eth0 nodad").unwrap();
    client.ip("addr add fd00:1::7/64 dev eth0 nodad").unwrap();
    gateway.run("ip route add fd00:9::/64 via fd00:1::2").unwrap();
    let run = format!("{FORWARDED} --proto tcp --port {PORT} --action direct --workers 2");
    let limited = format!("prlimit --nofile={DESCRIPTORS} {} run {run}", binary().display());
    for family in Family::ALL {
        serve(&world.net.server, (family.server(), PORT), echo);
        let mut tproxy: Tproxy = gateway.start(&limited).unwrap().into();
        tproxy.wait_line(&["ready"], PATIENCE).unwrap();
        let greedy: Vec<_> =
            (0..DESCRIPTORS).map_while(|_| relayed(&world, family.client(), family.server()).ok()).collect();
        assert_eq!(greedy.len(), DESCRIPTORS / 2 / 4, "{}", *tproxy);
        if family == Family::V6 {
            let same = relayed(&world, "fd00:1::7".parse().unwrap(), family.server());
            assert!(same.is_err(), "another address of its /64\n{}", *tproxy);
        }
        for _ in 0..5 {
            relayed(&world, another(family), family.server())
                .unwrap_or_else(|error| panic!("{error}\n{}", *tproxy));
        }
        drop(greedy);
        assert!(counted_at_the_end(&mut tproxy, "over_limit") >= 1, "{}", *tproxy);
    }
}

#[test]
fn who_asks_is_answered_when_connections_have_all_descriptors() {
    const METRICS: &str = "127.0.0.1:9464";
    let world = World::new();
    let (gateway, server) = (&world.net.gateway, Family::V4.server());
    serve(&world.net.server, (server, PORT), echo);
    let tproxy = world.tproxy(&format!(
        "{FORWARDED} --proto tcp --action direct --accept at-once --workers 1 --metrics {METRICS}"
    ));
    let established = relayed(&world, Family::V4.client(), server).unwrap();
    // Two for each: none is left over for a connection to be accepted that then has none for its upstream.
    let current = open_descriptors(tproxy.pid()) as u64 + 8;
    let pid = Pid::from_raw(tproxy.pid() as i32).unwrap();
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(current), maximum: Some(current + 32) })
        .unwrap();
    let refused = |_| connect(&world.net.client, (server, PORT)).ok();
    let mut held: Vec<_> = (0..32).map_while(refused).collect();
    tproxy.wait_line(&["cannot accept; resetting some clients"], PATIENCE).unwrap();
    for stream in &mut held {
        // Relayed or reset: from then on none takes or gives back a descriptor.
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(b"?").and_then(|()| stream.read(&mut [0]));
    }
    for command in ["status", "rules", "flows", "metrics"] {
        let answer = tproxy_output(gateway, command);
        assert!(answer.status.success(), "{command}: {}\n{}", answer.said, *tproxy);
    }
    let (address, port) = METRICS.split_once(':').unwrap();
    let scraped = curl(gateway, "-f", address.parse().unwrap(), port.parse().unwrap());
    assert_eq!(scraped.code, Some(22), "only /metrics is there: {scraped:?}\n{}", *tproxy);
    assert_echo(&established, "still there", &*tproxy);
    drop(held);
    assert!(tproxy_output(gateway, "drain").status.success(), "{}", *tproxy);
}
