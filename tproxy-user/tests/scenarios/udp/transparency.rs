//! What routers leave as it is: who may fragment a datagram, its class, and what is said on port 53.

use rustix::io::Errno;

use socket2::SockRef;
use tproxy::socket::{Message, Outgoing, TrafficClass, receive_messages, send_message, set_fragmenting};
use tproxy_common::packet::Fragmenting;

use super::*;

const PORT: u16 = 4433;

fn set(socket: &UdpSocket, family: Family, fragmenting: Fragmenting) {
    let family = match family {
        Family::V4 => tproxy::family::Family::V4,
        Family::V6 => tproxy::family::Family::V6,
    };
    set_fragmenting(socket, family, fragmenting).unwrap();
}

/// A network whose way to the server takes less than that to the client.
fn narrow() -> World {
    let world = World::new();
    for (namespace, device) in [(&world.net.gateway, "wan"), (&world.net.server, "eth0")] {
        namespace.ip(&format!("link set {device} mtu 1400")).unwrap();
    }
    world
}

#[test]
fn what_must_not_be_fragmented_is_not_and_its_sender_is_told_what_fits() {
    for engine in ENGINES {
        for nat in ["endpoint-independent", "per-destination"] {
            // The client keeps in mind what it was told.
            let world = narrow();
            let tproxy = world
                .tproxy(&format!("{FORWARDED} --proto udp --action direct --nat {nat} --steer {engine}"));
            for family in Family::ALL {
                let server = datagrams(&world.net.server, (family.server(), PORT));
                let client = datagrams(&world.net.client, (family.client(), 0));
                set(&client, family, Fragmenting::Forbidden);
                client.connect((family.server(), PORT)).unwrap();
                client.send(&[1; 1450]).unwrap();
                let told = receive(&client).unwrap_err();
                assert_eq!(
                    Errno::from_io_error(&told),
                    Some(Errno::MSGSIZE),
                    "{told} {engine} {nat}\n{}",
                    *tproxy
                );
                // What fits is known from now on.
                let known = client.send(&[1; 1450]).unwrap_err();
                assert_eq!(
                    Errno::from_io_error(&known),
                    Some(Errno::MSGSIZE),
                    "{known} {engine} {nat}\n{}",
                    *tproxy
                );
                client.send(&[2; 1300]).unwrap();
                let (said, _) = receive(&server).unwrap();
                assert_eq!(said.len(), 1300, "the long one did not arrive");
            }
        }
    }
}

/// Asserts that datagrams of these sizes arrive whole, which clients send by sockets that `prepare` has prepared.
fn assert_arrive(sizes: impl Fn(Family) -> [usize; 4], prepare: impl Fn(&UdpSocket, Family)) {
    let world = narrow();
    let tproxy = world.tproxy(&format!("{FORWARDED} --proto udp --action direct"));
    for family in Family::ALL {
        let server = datagrams(&world.net.server, (family.server(), PORT));
        let client = datagrams(&world.net.client, (family.client(), 0));
        prepare(&client, family);
        for size in sizes(family) {
            client.send_to(&vec![3; size], (family.server(), PORT)).unwrap();
            let (said, _) = receive(&server).unwrap_or_else(|error| panic!("{size}: {error}\n{}", *tproxy));
            assert_eq!(said.len(), size);
        }
    }
}

#[test]
fn what_may_be_fragmented_is() {
    // IPv6's senders do it themselves, and so do those of IPv4 when it is longer than their own link takes.
    let sizes = |family| if family == Family::V4 { [100, 1450, 4000, 1450] } else { [100, 4000, 100, 4000] };
    assert_arrive(sizes, |client, family| set(client, family, Fragmenting::Allowed));
}

/// Linux's usual socket: what fits must not be fragmented, what does not is, by itself.
#[test]
fn a_flow_may_have_both() {
    assert_arrive(|_| [100, 4000, 100, 9000], |_, _| {});
}

fn marked(socket: &UdpSocket, context: &dyn std::fmt::Display) -> Message {
    let options = SockRef::from(socket);
    match socket.local_addr().unwrap() {
        SocketAddr::V4(_) => options.set_recv_tos_v4(true).unwrap(),
        SocketAddr::V6(_) => options.set_recv_tclass_v6(true).unwrap(),
    }
    // Waits.
    socket.peek_from(&mut [0; 1]).unwrap_or_else(|error| panic!("{error}\n{context}"));
    let mut messages = [Message::NOTHING];
    receive_messages(socket, &mut [0; 100], 100, &mut messages).unwrap();
    messages[0]
}

#[test]
fn each_datagram_keeps_its_class() {
    let world = World::new();
    for engine in ENGINES {
        for nat in ["endpoint-independent", "per-destination"] {
            let tproxy = world
                .tproxy(&format!("{FORWARDED} --proto udp --action direct --nat {nat} --steer {engine}"));
            for family in Family::ALL {
                let server = datagrams(&world.net.server, (family.server(), PORT));
                let client = datagrams(&world.net.client, (family.client(), 0));
                for class in [0xb8, 0x28, 0, 0xb8].map(TrafficClass) {
                    let send = |socket: &UdpSocket, to, class| {
                        send_message(socket, &Outgoing { to, class, contents: b"rtp", segment: None })
                            .unwrap();
                    };
                    send(&client, (family.server(), PORT).into(), class);
                    let Message { from, class: arrived, .. } = marked(&server, &*tproxy);
                    assert_eq!(arrived, class, "{engine} {nat}");
                    let back = TrafficClass(class.0 ^ 0x40);
                    send(&server, from, back);
                    assert_eq!(marked(&client, &*tproxy).class, back, "{engine} {nat}");
                }
            }
        }
    }
}
