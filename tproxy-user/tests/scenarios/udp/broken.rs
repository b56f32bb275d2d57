//! What is odd or broken.

use socket2::{Domain, Protocol, Socket, Type};
use tproxy::socket::datagram_from;

use super::*;

#[test]
fn empty_datagrams_are_relayed_both_ways() {
    let world = World::new();
    for engine in ENGINES {
        let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --steer {engine}"));
        for family in Family::ALL {
            let server = datagrams(&world.net.server, (family.server(), 0));
            let client = datagrams(&world.net.client, (family.client(), 0));
            client.connect(server.local_addr().unwrap()).unwrap();
            for text in ["", "x", ""] {
                client.send(text.as_bytes()).unwrap();
                let (got, peer) = receive(&server).unwrap_or_else(|error| panic!("{error}\n{}", *tproxy));
                assert_eq!((got.as_str(), peer.ip()), (text, family.wan()), "{engine}\n{}", *tproxy);
                server.send_to(text.as_bytes(), peer).unwrap();
                assert_eq!(receive(&client).unwrap().0, text, "{engine}\n{}", *tproxy);
            }
        }
    }
}

#[test]
fn the_longest_datagrams_there_are_pass() {
    let world = World::new();
    for (family, longest) in Family::ALL.into_iter().zip([65_507, 65_527]) {
        let tproxy = world.tproxy(&format!("{FORWARDED} --action direct"));
        let server = datagrams(&world.net.server, (family.server(), 0));
        let client = datagrams(&world.net.client, (family.client(), 0));
        client.connect(server.local_addr().unwrap()).unwrap();
        let text = "x".repeat(longest);
        client.send(text.as_bytes()).unwrap();
        let (got, peer) = receive(&server).unwrap_or_else(|error| panic!("{error}\n{}", *tproxy));
        assert!(got == text, "{} bytes", got.len());
        server.send_to(text.as_bytes(), peer).unwrap();
        assert_eq!(receive(&client).unwrap().0.len(), longest, "{}", *tproxy);
    }
}

/// UDP headers of one's own after the kernel's IP header: lengths and checksums that lie.
#[test]
fn broken_headers_change_nothing() {
    let world = World::new();
    for engine in ENGINES {
        let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --steer {engine}"));
        for family in Family::ALL {
            let server = datagrams(&world.net.server, (family.server(), 0));
            let to = server.local_addr().unwrap();
            let raw = world.net.client.enter(|| {
                let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
                Socket::new(domain, Type::RAW, Some(Protocol::UDP)).unwrap()
            });
            let header = |length: u16, checksum: u16| {
                let words = [6_002, to.port(), length, checksum];
                words.map(u16::to_be_bytes).concat()
            };
            let broken = [
                // A checksum that is wrong.
                [header(12, 0x1234), b"evil".to_vec()].concat(),
                // Longer than the packet, and shorter than its own header.
                [header(1_000, 0), b"evil".to_vec()].concat(),
                [header(7, 0), b"evil".to_vec()].concat(),
                // No whole header.
                header(8, 0)[..6].to_vec(),
                header(8, 0)[..2].to_vec(),
            ];
            for packet in &broken {
                raw.send_to(packet, &SocketAddr::new(to.ip(), 0).into()).unwrap();
            }
            let client = datagrams(&world.net.client, (family.client(), 0));
            client.send_to(b"good", to).unwrap();
            let (got, peer) = receive(&server).unwrap_or_else(|error| panic!("{error}\n{}", *tproxy));
            assert_eq!((got.as_str(), peer.ip()), ("good", family.wan()), "{engine}\n{}", *tproxy);
            assert_nothing(&server, &*tproxy);
        }
    }
}

/// Port 0 has nobody who could answer: it is passed, and to be seen on the server's link as it was sent.
#[test]
fn port_zero_is_passed_and_a_source_that_is_ours_gets_past_no_rule() {
    let world = World::new();
    for engine in ENGINES {
        let mut tproxy = world.tproxy(&format!("{FORWARDED} --action respond=taken --steer {engine}"));
        for family in Family::ALL {
            let raw = world.net.client.enter(|| {
                let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
                Socket::new(domain, Type::RAW, Some(Protocol::UDP)).unwrap()
            });
            let sink = world.net.server.enter(|| {
                let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
                Socket::new(domain, Type::RAW, Some(Protocol::UDP)).unwrap()
            });
            sink.bind(&SocketAddr::new(family.server(), 0).into()).unwrap();
            sink.set_read_timeout(Some(PATIENCE)).unwrap();
            let own = SocketAddr::new(family.client(), 6_003);
            let datagram = [6_003_u16, 0, 8 + 4, 0].map(u16::to_be_bytes).concat();
            let packet = [datagram, b"zero".to_vec()].concat();
            raw.send_to(&packet, &SocketAddr::new(family.server(), 0).into()).unwrap();
            let mut buffer = [std::mem::MaybeUninit::uninit(); 256];
            let (length, from) =
                sink.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{error}\n{}", *tproxy));
            assert_eq!(from.as_socket().unwrap().ip(), own.ip(), "{engine}");
            assert!(length >= packet.len(), "{engine}: {length}");
        }
        assert!(counted_at_the_end(&mut tproxy, "pass_never_intercepted") >= 2, "{}", *tproxy);
        // Nobody can answer them, and the kernel forwards those of IPv6, past a rule that means otherwise.
        let mut tproxy = world.tproxy(&format!("{FORWARDED} --action respond=taken --steer {engine}"));
        for family in Family::ALL {
            let feigned = world.net.client.enter(|| datagram_from((family.lan(), 6_004).into())).unwrap();
            feigned.send_to(b"from you", &SocketAddr::new(family.server(), 7).into()).unwrap();
        }
        let client = datagrams(&world.net.client, (Family::V4.client(), 0));
        ask(&client, (Family::V4.server(), 7).into(), "after these", &*tproxy);
        assert!(counted_at_the_end(&mut tproxy, "drop_unreadable") >= 2, "{}", *tproxy);
    }
}
