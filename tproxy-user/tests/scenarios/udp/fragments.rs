//! Datagrams that do not fit the link.

use std::net::IpAddr;

use socket2::{Domain, Protocol, Socket, Type};

use super::*;

/// Bytes of payload; on a link of 1,500 bytes these come in 3 and in 41 fragments.
const LENGTHS: [usize; 2] = [4_000, 60_000];

fn text(length: usize) -> String {
    (0..length).map(|index| char::from(b'a' + (index / 7 % 26) as u8)).collect()
}

#[test]
fn large_datagrams_are_intercepted_whole_in_both_directions() {
    for world in [World::new(), World::l3()] {
        reflecting(&world, 7);
        for engine in ENGINES {
            let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --steer {engine}"));
            for (family, length) in
                Family::ALL.iter().flat_map(|family| LENGTHS.map(|length| (family, length)))
            {
                let client = datagrams(&world.net.client, (family.client(), 0));
                for _ in 0..3 {
                    let answer = ask(&client, (family.server(), 7).into(), &text(length), &*tproxy);
                    let (seen, said) = answer.split_once(" said ").unwrap();
                    assert_eq!(seen.parse::<SocketAddr>().unwrap().ip(), family.wan(), "{engine}");
                    assert!(said == text(length), "{engine} {length}: {} came back", said.len());
                }
            }
        }
    }
}

#[test]
fn the_hosts_own_large_datagrams_are_intercepted_whole() {
    let world = World::new();
    reflecting(&world, 7);
    for engine in ENGINES {
        let args = "--scope outbound --to 0.0.0.0/0 --to ::/0 --proto udp --action direct";
        let tproxy = world.tproxy(&format!("{args} --steer {engine}"));
        for (family, length) in Family::ALL.iter().flat_map(|family| LENGTHS.map(|length| (family, length))) {
            let client = datagrams(&world.net.gateway, (family.wan(), 0));
            let own = client.local_addr().unwrap();
            let answer = ask(&client, (family.server(), 7).into(), &text(length), &*tproxy);
            let (seen, said) = answer.split_once(" said ").unwrap();
            assert_ne!(seen, own.to_string(), "{engine}: not relayed\n{}", *tproxy);
            assert!(said == text(length), "{engine} {length}: {} came back", said.len());
        }
    }
}

#[test]
fn fragments_in_any_order_are_intercepted_whole() {
    let world = World::new();
    for engine in ENGINES {
        let mut tproxy = world.tproxy(&format!("{FORWARDED} --port 7 --action direct --steer {engine}"));
        for family in Family::ALL {
            for port in [7, 8] {
                let server = datagrams(&world.net.server, (family.server(), port));
                for (round, order) in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]].into_iter().enumerate() {
                    let flow =
                        Flow { from: (family.client(), 6_000).into(), to: (family.server(), port).into() };
                    let payload = text(4_000);
                    flow.send(&raw(&world.net.client, family), round as u16 + 1, &payload, order);
                    let (got, peer) = receive(&server).unwrap_or_else(|error| {
                        panic!("{engine} {family:?} port {port} {order:?}: {error}\n{}", *tproxy)
                    });
                    assert!(got == payload, "{engine} {order:?}: {} bytes", got.len());
                    // Selected or not, it arrives whole; only the selected one is relayed.
                    let source = if port == 7 { family.wan() } else { family.client() };
                    assert_eq!(peer.ip(), source, "{engine} {order:?}\n{}", *tproxy);
                }
            }
        }
        assert!(counted_at_the_end(&mut tproxy, "carried") > 0, "{}", *tproxy);
    }
}

/// One after the other, without waiting for what becomes of those before.
#[test]
fn no_datagram_of_a_flow_that_is_left_alone_is_lost() {
    // As many as a receive buffer holds.
    const DATAGRAMS: u16 = 20;
    let world = World::new();
    for engine in ENGINES {
        let tproxy = world.tproxy(&format!("{FORWARDED} --port 7 --action direct --steer {engine}"));
        for family in Family::ALL {
            let server = datagrams(&world.net.server, (family.server(), 8));
            let flow = Flow { from: (family.client(), 6_000).into(), to: (family.server(), 8).into() };
            let payload = text(4_000);
            let sender = raw(&world.net.client, family);
            for number in 1..=DATAGRAMS {
                let order = if number % 5 == 0 { [0, 1, 2] } else { [2, 1, 0] };
                flow.send(&sender, number, &payload, order);
            }
            for number in 1..=DATAGRAMS {
                let (got, peer) = receive(&server)
                    .unwrap_or_else(|error| panic!("{engine} {family:?} {number}: {error}\n{}", *tproxy));
                assert!(got == payload, "{engine} {family:?}: {} bytes", got.len());
                assert_eq!(peer.ip(), family.client(), "{engine}\n{}", *tproxy);
            }
        }
    }
}

/// Nobody is there to send on what would be delivered.
#[test]
fn what_no_rule_selects_passes_in_any_order_when_the_process_is_gone() {
    let world = World::new();
    for engine in ENGINES {
        let args =
            format!("{FORWARDED} --proto udp --port 7 --action direct --on-exit reject --steer {engine}");
        let mut tproxy = world.tproxy(&args);
        tproxy.kill9();
        for family in Family::ALL {
            let server = datagrams(&world.net.server, (family.server(), 8));
            let flow = Flow { from: (family.client(), 6_000).into(), to: (family.server(), 8).into() };
            let payload = text(4_000);
            let sender = raw(&world.net.client, family);
            for (number, order) in (1..).zip([[2, 1, 0], [1, 0, 2]]) {
                flow.send(&sender, number, &payload, order);
                let (got, peer) = receive(&server)
                    .unwrap_or_else(|error| panic!("{engine} {family:?} {order:?}: {error}\n{}", *tproxy));
                assert!(got == payload, "{engine} {order:?}: {} bytes", got.len());
                assert_eq!(peer, flow.from, "{engine} {order:?}");
            }
        }
        crate::clean::assert_cleanup(&world.net.gateway);
    }
}

/// What is for the host itself is delivered as it is, whatever fragment comes first: no rule of scope `forwarded` is about it.
#[test]
fn fragments_for_the_host_itself_reach_its_own_service_once() {
    let world = World::new();
    for engine in ENGINES {
        let args =
            format!("{FORWARDED} --proto udp --port 7 --action direct --source client --steer {engine}");
        let tproxy = world.tproxy(&args);
        for family in Family::ALL {
            let service = datagrams(&world.net.gateway, (family.lan(), 8));
            let flow = Flow { from: (family.client(), 6_000).into(), to: (family.lan(), 8).into() };
            let payload = text(4_000);
            let sender = raw(&world.net.client, family);
            for (number, order) in (1..).zip([[2, 1, 0], [0, 1, 2], [1, 0, 2]]) {
                flow.send(&sender, number, &payload, order);
                let (got, peer) = receive(&service)
                    .unwrap_or_else(|error| panic!("{engine} {family:?} {order:?}: {error}\n{}", *tproxy));
                assert!(got == payload, "{engine} {order:?}: {} bytes", got.len());
                assert_eq!(peer, flow.from, "{engine} {order:?}");
            }
            assert_nothing(&service, &*tproxy);
        }
    }
}

/// A number of a fragmented datagram that an inbound rule took, used again for one that another rule drops.
#[test]
fn a_fragment_number_used_again_does_not_pass_by_an_inbound_rule() {
    let world = World::new();
    let files = crate::config::Files::new();
    let rules = r#"
        [[rules]]
        scope = "inbound"
        protocol = "udp"
        ports = [53]
        action = "respond=taken"
        [[rules]]
        scope = "inbound"
        protocol = "udp"
        ports = [161]
        action = "drop"
    "#;
    let tproxy = world.tproxy(&files.write("rules.toml", rules));
    for family in Family::ALL {
        let service = datagrams(&world.net.gateway, (family.lan(), 161));
        let client = datagrams(&world.net.client, (family.client(), 6_000));
        let sender = raw(&world.net.client, family);
        let send = |port, number| {
            let flow = Flow { from: (family.client(), 6_000).into(), to: (family.lan(), port).into() };
            flow.send(&sender, number, &text(4_000), [0, 1, 2]);
        };
        // The first one has the flow decided, the second is of a flow that is known.
        for _ in 0..2 {
            send(53, 9);
            assert_eq!(receive(&client).unwrap().0, "taken", "{}", *tproxy);
        }
        send(161, 9);
        // Of another number: packets may overtake each other on the way, and pieces of two would be mixed.
        send(53, 10);
        receive(&client).unwrap();
        assert_nothing(&service, &*tproxy);
    }
}

/// A socket for packets with headers of one's own (raw(7)).
fn raw(namespace: &Namespace, family: Family) -> Socket {
    namespace.enter(|| {
        let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
        // Of IPPROTO_RAW both families expect the IP header (`rawv6_init_sk`).
        Socket::new(domain, Type::RAW, Some(Protocol::from(255))).unwrap()
    })
}

struct Flow {
    from: SocketAddr,
    to: SocketAddr,
}

impl Flow {
    /// Sends a datagram of three pieces, in this order.
    fn send(&self, sender: &Socket, id: u16, payload: &str, order: [usize; 3]) {
        let fragments = self.fragments(id, payload.as_bytes());
        for index in order {
            sender.send_to(&fragments[index], &SocketAddr::new(self.to.ip(), 0).into()).unwrap();
        }
    }

    /// The packets of a datagram, cut into pieces of 1,448 bytes.
    fn fragments(&self, id: u16, payload: &[u8]) -> Vec<Vec<u8>> {
        let length = (8 + payload.len()) as u16;
        let mut datagram = Vec::from(self.from.port().to_be_bytes());
        datagram.extend(self.to.port().to_be_bytes());
        datagram.extend(length.to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        let sum = self.checksum(&datagram);
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
        let pieces: Vec<_> = datagram.chunks(1_448).collect();
        let last = pieces.len() - 1;
        let packet = |(index, piece): (usize, &&[u8])| {
            let offset = (index * 1_448 / 8) as u16;
            [self.header(id, offset, index < last, piece.len()), piece.to_vec()].concat()
        };
        pieces.iter().enumerate().map(packet).collect()
    }

    /// RFC 791, 3.1; RFC 8200, 3 and 4.5. `offset` in units of 8 bytes.
    fn header(&self, id: u16, offset: u16, more: bool, length: usize) -> Vec<u8> {
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let [total, id] = [20 + length as u16, id].map(u16::to_be_bytes);
                let place = (offset | u16::from(more) << 13).to_be_bytes();
                let start = [&[0x45, 0], &total[..], &id, &place, &[64, 17, 0, 0]].concat();
                // The kernel fills in the checksum (raw(7)).
                [&start[..], &from.octets(), &to.octets()].concat()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let total = (8 + length as u16).to_be_bytes();
                let place = (offset << 3 | u16::from(more)).to_be_bytes();
                let start = [&[0x60, 0, 0, 0], &total[..], &[44, 64]].concat();
                let fragment = [&[17, 0], &place[..], &u32::from(id).to_be_bytes()].concat();
                [&start[..], &from.octets(), &to.octets(), &fragment].concat()
            }
            mixed => panic!("{mixed:?}"),
        }
    }

    fn checksum(&self, datagram: &[u8]) -> u16 {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let pseudo = [octets(self.from.ip()), octets(self.to.ip()), vec![0, 17]].concat();
        let length = (datagram.len() as u16).to_be_bytes();
        let all = [&pseudo[..], &length, datagram].concat();
        let word = |pair: &[u8]| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u64::from(*byte));
        let mut sum: u64 = all.chunks(2).map(word).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }
}

#[test]
fn a_broken_fragment_changes_nothing() {
    let world = World::new();
    reflecting(&world, 7);
    for engine in ENGINES {
        let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --steer {engine}"));
        for family in Family::ALL {
            let to = SocketAddr::new(family.server(), 7);
            let flow = Flow { from: (family.client(), 6_001).into(), to };
            let sender = raw(&world.net.client, family);
            let fragments = flow.fragments(77, text(4_000).as_bytes());
            // Never completed, cut short, and twice the same.
            for packet in [&fragments[1], &fragments[2], &fragments[0][..36].to_vec(), &fragments[1]] {
                // The kernel itself refuses some of them.
                let _ = sender.send_to(packet, &SocketAddr::new(family.server(), 0).into());
            }
            let client = datagrams(&world.net.client, (family.client(), 0));
            let answer = ask(&client, to, "fine", &*tproxy);
            assert!(answer.ends_with("said fine"), "{answer}");
        }
    }
}
