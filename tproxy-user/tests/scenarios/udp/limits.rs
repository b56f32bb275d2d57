//! What a flood may cost.

use std::{fs, net::IpAddr, time::Duration};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tproxy::socket::datagram_from;

use super::*;

const PORT: u16 = 7;

pub(crate) fn open_descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count()
}

/// CPU time of a process until now (proc_pid_stat(5)).
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<_> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks: u64 = [11, 12].map(|field: usize| fields[field].parse::<u64>().expect("ticks")).iter().sum();
    Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second())
}

/// Starts `flows` flows of one datagram from as many ports of `from`, waiting for nothing.
fn flood(namespace: &Namespace, from: IpAddr, to: SocketAddr, flows: usize) {
    for _ in 0..flows {
        let socket = datagrams(namespace, (from, 0));
        socket.send_to(b"flood", to).unwrap();
    }
}

/// Starts `flows` flows of one datagram from addresses that nobody has, of the client's network.
fn flood_from_anywhere(namespace: &Namespace, family: Family, to: SocketAddr, flows: std::ops::Range<u16>) {
    for flow in flows {
        let source = |flow: u16| -> IpAddr {
            match family {
                Family::V4 => IpAddr::from([10, 1, 0, 4 + (flow % 240) as u8]),
                Family::V6 => format!("fd00:1::{:x}", 4 + flow).parse().unwrap(),
            }
        };
        let from = SocketAddr::new(source(flow), 20_000 + flow);
        let socket = namespace.enter(|| datagram_from(from)).unwrap();
        socket.send_to(b"flood", &to.into()).unwrap();
    }
}

#[test]
fn a_flood_stays_within_the_cap_and_spares_established_flows() {
    const FLOWS: u16 = 200;
    let world = World::new();
    reflecting(&world, PORT);
    for family in Family::ALL {
        let quiet = datagrams(&world.net.server, (family.server(), 9));
        let mut tproxy = world.tproxy(&format!(
            "{FORWARDED} --action direct --workers 1 --udp-sessions 64 --udp-sessions-per-client 64"
        ));
        let before = open_descriptors(tproxy.pid());
        let established = datagrams(&world.net.client, (family.client(), 0));
        let to = SocketAddr::new(family.server(), PORT);
        let first = ask(&established, to, "first", &*tproxy);
        for round in 0..10 {
            let flows = round * FLOWS..(round + 1) * FLOWS;
            flood_from_anywhere(&world.net.client, family, quiet.local_addr().unwrap(), flows);
            let again = ask(&established, to, "again", &*tproxy);
            assert_eq!(again.split(' ').next(), first.split(' ').next(), "its upstream socket changed");
            let used = open_descriptors(tproxy.pid()) - before;
            assert!(used <= 2 * 64, "{used} descriptors\n{}", *tproxy);
        }
        // One is established, and 63 one-way sessions are left; of IPv6, all are one client's. What a session has not read when it is evicted is lost,
        // strays among it, whose own sessions then never begin.
        let evicted = counted_at_the_end(&mut tproxy, "evicted");
        let most = 10 * u64::from(FLOWS) - 63;
        assert!((most - 20..=most).contains(&evicted), "{evicted} of {most}\n{}", *tproxy);
    }
}

#[test]
fn one_client_cannot_have_it_all() {
    let world = World::new();
    world.net.client.ip("addr add 10.1.0.3/24 dev eth0").unwrap();
    reflecting(&world, PORT);
    let quiet = datagrams(&world.net.server, (Family::V4.server(), 9));
    let tproxy = world.tproxy(&format!(
        "{FORWARDED} --action direct --workers 1 --udp-sessions 64 --udp-sessions-per-client 8"
    ));
    let before = open_descriptors(tproxy.pid());
    flood(&world.net.client, "10.1.0.3".parse().unwrap(), quiet.local_addr().unwrap(), 100);
    let client = datagrams(&world.net.client, (Family::V4.client(), 0));
    ask(&client, (Family::V4.server(), PORT).into(), "hello", &*tproxy);
    let used = open_descriptors(tproxy.pid()) - before;
    assert!(used <= 2 * (8 + 1), "{used} descriptors\n{}", *tproxy);
}

#[test]
fn lack_of_descriptors_is_counted_and_passes() {
    let world = World::new();
    reflecting(&world, PORT);
    let quiet = datagrams(&world.net.server, (Family::V4.server(), 9));
    let to = SocketAddr::new(Family::V4.server(), PORT);
    // A session takes two: with an odd number one stays free, with an even one none does.
    for spare in [16, 17] {
        let mut tproxy =
            world.tproxy(&format!("{FORWARDED} --action direct --workers 1 --udp-sessions 1000"));
        let established = datagrams(&world.net.client, (Family::V4.client(), 0));
        ask(&established, to, "first", &*tproxy);
        let limit = open_descriptors(tproxy.pid()) as u64 + spare;
        let pid = Pid::from_raw(tproxy.pid() as i32).unwrap();
        // What it needs to leave the host as it was it may have when it stops.
        let maximum = Some(limit + 32);
        prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(limit), maximum }).unwrap();
        flood(&world.net.client, Family::V4.client(), quiet.local_addr().unwrap(), 100);
        ask(&established, to, "still there", &*tproxy);
        // Nothing is left to do: it waits, and does not try again and again.
        let before = cpu_time(tproxy.pid());
        established.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        assert!(receive(&established).is_err());
        let spent = cpu_time(tproxy.pid()) - before;
        assert!(spent < Duration::from_millis(300), "{spent:?} of CPU time in a second");
        established.set_read_timeout(Some(PATIENCE)).unwrap();
        // The least recently used one makes room for a newcomer.
        let newcomer = datagrams(&world.net.client, (Family::V4.client(), 0));
        ask(&newcomer, to, "room for one", &*tproxy);
        assert!(counted_at_the_end(&mut tproxy, "out_of_descriptors") > 0, "{}", *tproxy);
    }
}

#[test]
fn lack_of_local_ports_is_counted_and_others_are_served() {
    let world = World::new();
    let gateway = &world.net.gateway;
    gateway.set_sysctl("net.ipv4.ip_local_port_range", "40000 40099").unwrap();
    world.net.client.ip("addr add 10.1.0.3/24 dev eth0\naddr add fd00:1::3/64 dev eth0 nodad").unwrap();
    reflecting(&world, PORT);
    for family in Family::ALL {
        let quiet = datagrams(&world.net.server, (family.server(), 9));
        let greedy = if family == Family::V4 { "10.1.0.3" } else { "fd00:1::3" };
        for source in ["host", "client"] {
            let mut tproxy = world
                .tproxy(&format!("{FORWARDED} --proto udp --action direct --source {source} --workers 1"));
            // Kept, so that each has a port of its own.
            let _flood: Vec<_> = (0..200)
                .map(|_| {
                    let socket = datagrams(&world.net.client, (greedy.parse::<IpAddr>().unwrap(), 0));
                    socket.send_to(b"flood", quiet.local_addr().unwrap()).unwrap();
                    socket
                })
                .collect();
            for from in [family.client(), greedy.parse().unwrap()] {
                let client = datagrams(&world.net.client, (from, 0));
                for text in ["first", "second"] {
                    ask(&client, (family.server(), PORT).into(), text, &*tproxy);
                }
            }
            assert!(counted_at_the_end(&mut tproxy, "out_of_ports") > 0, "{source}\n{}", *tproxy);
        }
    }
}

/// A VPN, say, on the one port that is open everywhere.
#[test]
fn what_is_on_port_53_and_no_dns_may_be_answered_often() {
    const ANSWERS: u8 = 10;
    let world = World::new();
    let tproxy = world.tproxy(&format!("{FORWARDED} --proto udp --action direct"));
    for family in Family::ALL {
        let server = datagrams(&world.net.server, (family.server(), 53));
        let client = datagrams(&world.net.client, (family.client(), 0));
        let mut seen = None;
        for _ in 0..3 {
            client.send_to(b"request", server.local_addr().unwrap()).unwrap();
            let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
            assert_eq!(*seen.get_or_insert(from), from, "another endpoint\n{}", *tproxy);
            for number in 0..ANSWERS {
                server.send_to(&[number], from).unwrap();
                let mut answer = [0];
                client
                    .recv_from(&mut answer)
                    .unwrap_or_else(|error| panic!("{number}: {error}\n{}", *tproxy));
                assert_eq!(answer, [number], "{}", *tproxy);
            }
        }
    }
}

/// For the address of `x.example`.
const QUERY: &str = "\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01x\x07example\0\0\x01\0\x01";

/// Says of every name that it has no address. It ends with the test process.
fn answering_dns(namespace: &Namespace, address: impl Into<SocketAddr>) {
    let socket = datagrams(namespace, address);
    socket.set_read_timeout(None).expect("SO_RCVTIMEO");
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            buffer[2] |= 0x80;
            let _ = socket.send_to(&buffer[..length], peer);
        }
    });
}

#[test]
fn sessions_end_when_they_are_silent_and_dns_when_it_is_answered() {
    let world = World::new();
    reflecting(&world, PORT);
    for family in Family::ALL {
        answering_dns(&world.net.server, (family.server(), 53));
    }
    for engine in ENGINES {
        let times = "--udp-timeout 1s --udp-stream-timeout 2s";
        let mut tproxy = world.tproxy(&format!("{FORWARDED} --action direct {times} --steer {engine}"));
        let before = open_descriptors(tproxy.pid());
        for family in Family::ALL {
            let client = datagrams(&world.net.client, (family.client(), 0));
            let own = client.local_addr().unwrap().to_string();
            ask(&client, (family.server(), 53).into(), QUERY, &*tproxy);
            tproxy.wait_line(&[&own, "closed", "end=answered"], PATIENCE).unwrap();
            ask(&client, (family.server(), PORT).into(), "hello", &*tproxy);
            tproxy.wait_line(&[&own, ":7", "closed", "end=idle"], PATIENCE).unwrap();
            // As if it were new.
            ask(&client, (family.server(), PORT).into(), "hello again", &*tproxy);
            ask(&client, (family.server(), 53).into(), QUERY, &*tproxy);
        }
        let position = tproxy.position();
        tproxy.wait_line_from(position, &["closed", "end=idle"], PATIENCE).unwrap();
        assert!(open_descriptors(tproxy.pid()) <= before + 2, "{}", *tproxy);
        assert_eq!(counted_at_the_end(&mut tproxy, "answered"), 4, "{}", *tproxy);
    }
}
