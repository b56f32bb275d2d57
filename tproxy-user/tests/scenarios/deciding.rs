//! A packet is decided once, whatever scopes there are, and nothing is decided where there is no packet.

use std::net::{IpAddr, SocketAddr};

use rustix::thread::{Uid, set_thread_uid};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{config::Files, support::*};

const ROUNDS: u64 = 3;

/// Rules of all scopes that have each other's ports.
fn all_scopes(files: &Files, engine: &str) -> String {
    let rule = |name: &str, rest: &str| {
        format!("[[rules]]\nname = \"{name}\"\nports = [7000]\n{rest}\naction = \"respond={name}\"\n")
    };
    files.write(
        "tproxy.toml",
        &[
            format!("steer = \"{engine}\"\n"),
            rule("forwarded", "scope = \"forwarded\"\ninterfaces = [\"lan\"]"),
            rule("inbound", "scope = \"inbound\""),
            rule("outbound", "scope = \"outbound\""),
        ]
        .concat(),
    )
}

#[track_caller]
fn assert_answer(namespace: &Namespace, from: IpAddr, to: SocketAddr, text: &str, tproxy: &Tproxy) {
    curl(namespace, "", to.ip(), to.port()).assert_body(text, &**tproxy);
    let socket = datagrams(namespace, (from, 0));
    socket.send_to(b"?", to).unwrap();
    let mut buffer = [0; 64];
    let (length, peer) =
        socket.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{error}\n{}", **tproxy));
    assert_eq!((&buffer[..length], peer), (text.as_bytes(), to), "{}", **tproxy);
}

#[test]
fn each_flow_is_counted_once_by_the_rule_that_decides_it() {
    let world = World::new();
    let files = Files::new();
    for engine in ENGINES {
        let tproxy = world.tproxy(&all_scopes(&files, engine));
        for family in Family::ALL {
            for _ in 0..ROUNDS {
                let (client, gateway) = (&world.net.client, &world.net.gateway);
                assert_answer(client, family.client(), (family.server(), 7000).into(), "forwarded", &tproxy);
                assert_answer(client, family.client(), (family.lan(), 7000).into(), "inbound", &tproxy);
                assert_answer(gateway, family.wan(), (family.server(), 7000).into(), "outbound", &tproxy);
            }
        }
        // TCP and UDP in both families.
        assert_eq!(hits(&world.net.gateway), [4 * ROUNDS; 3], "{engine}\n{}", *tproxy);
        for family in Family::ALL {
            let from = SocketAddr::new(family.client(), 5555);
            for (to, scope) in [(family.server(), "forwarded"), (family.lan(), "inbound")] {
                for protocol in ["tcp", "udp"] {
                    let to = SocketAddr::new(to, 7000);
                    let question = format!("explain {protocol} {from} {to} --interface lan --scope {scope}");
                    let ended = tproxy_output(&world.net.gateway, &question);
                    assert!(ended.status.success(), "{question}: {}", ended.said);
                }
            }
        }
        assert_eq!(hits(&world.net.gateway), [4 * ROUNDS; 3], "explain counts nothing\n{}", *tproxy);
    }
}

/// Asks sock_diag (`struct inet_diag_req_v2`) which socket would receive a packet that comes in by an interface. For UDP,
/// source and destination are the other way round (`udp_dump_one`).
fn ask_for_a_socket(netlink: &Socket, protocol: u8, [from, to]: [SocketAddr; 2], ifindex: u32) {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST: u16 = 1;
    let [own, peer] = if protocol == 17 { [from, to] } else { [to, from] };
    let bytes = |address: IpAddr| {
        let mut bytes = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        bytes.resize(16, 0);
        bytes
    };
    let family = if from.is_ipv4() { 2_u8 } else { 10 };
    let request = [
        vec![family, protocol, 0, 0],
        u32::MAX.to_ne_bytes().to_vec(),
        [own.port().to_be_bytes(), peer.port().to_be_bytes()].concat(),
        bytes(own.ip()),
        bytes(peer.ip()),
        ifindex.to_ne_bytes().to_vec(),
        vec![0xff; 8],
    ]
    .concat();
    let length = (16 + request.len()) as u32;
    let header = [
        length.to_ne_bytes().to_vec(),
        SOCK_DIAG_BY_FAMILY.to_ne_bytes().to_vec(),
        NLM_F_REQUEST.to_ne_bytes().to_vec(),
        vec![0; 8],
    ]
    .concat();
    netlink.send(&[header, request].concat()).unwrap();
    let mut answer = [std::mem::MaybeUninit::uninit(); 4096];
    netlink.recv(&mut answer).unwrap();
}

#[test]
fn who_asks_for_a_socket_decides_nothing() {
    const NETLINK_SOCK_DIAG: i32 = 4;
    const AF_NETLINK: i32 = 16;
    const NOBODY: u32 = 65_534;
    let world = World::new();
    let files = Files::new();
    let tproxy = world.tproxy(&all_scopes(&files, ENGINES[0]));
    let gateway = &world.net.gateway;
    let index = gateway.enter(|| nix::net::if_::if_nametoindex("lan").unwrap());
    gateway.enter(|| {
        // Anybody may ask. It is the user of this thread alone.
        set_thread_uid(Uid::from_raw(NOBODY)).unwrap();
        let netlink =
            Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_SOCK_DIAG)))
                .unwrap();
        for family in Family::ALL {
            for port in 5000..5020 {
                for to in [family.lan(), family.server()] {
                    let flow = [SocketAddr::new(family.client(), port), SocketAddr::new(to, 7000)];
                    ask_for_a_socket(&netlink, 6, flow, index);
                    ask_for_a_socket(&netlink, 17, flow, index);
                }
            }
        }
    });
    assert_eq!(hits(&world.net.gateway), [0; 3], "{}", *tproxy);
    let metrics = tproxy_output(gateway, "metrics").said;
    for map in ["DECISIONS", "MEMORY"] {
        assert!(metrics.contains(&format!("tproxy_map_entries{{map=\"{map}\"}} 0")), "{map}\n{metrics}");
    }
}
