//! What the network says about datagrams: ICMP errors and ECN.

use std::io::IoSliceMut;

use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tproxy::socket::{IcmpError, PeerError, next_error};

use super::*;

/// A client that is told of errors.
fn client(namespace: &Namespace, family: Family) -> UdpSocket {
    let socket = datagrams(namespace, (family.client(), 0));
    match family {
        Family::V4 => setsockopt(&socket, sockopt::Ipv4RecvErr, &true),
        Family::V6 => setsockopt(&socket, sockopt::Ipv6RecvErr, &true),
    }
    .unwrap();
    socket
}

/// Waits for what is in the error queue.
#[track_caller]
fn told(socket: &UdpSocket, context: &dyn std::fmt::Display) -> PeerError {
    let limit = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    // Errors need not be asked for (poll(2)).
    let events = poll(&mut [PollFd::new(socket, PollFlags::empty())], Some(&limit)).unwrap();
    assert_eq!(events, 1, "no error came\n{context}");
    next_error(socket).unwrap().unwrap_or_else(|| panic!("no ICMP error\n{context}"))
}

#[test]
fn a_closed_port_is_told_from_the_original_destination() {
    let world = World::new();
    for (engine, source) in ENGINES.iter().flat_map(|engine| [(engine, "host"), (engine, "client")]) {
        for nat in ["endpoint-independent", "per-destination"] {
            let args = format!("{FORWARDED} --action direct --source {source} --nat {nat} --steer {engine}");
            let mut tproxy = world.tproxy(&args);
            for family in Family::ALL {
                let to = SocketAddr::new(family.public(), 9);
                let client = client(&world.net.client, family);
                client.connect(to).unwrap();
                client.send(b"anybody?").unwrap();
                let error = told(&client, &*tproxy);
                assert_eq!(
                    error,
                    PeerError { peer: to, reporter: to.ip(), error: IcmpError::PortUnreachable }
                );
            }
            assert_eq!(counted_at_the_end(&mut tproxy, "icmp_sent"), 2, "{}", *tproxy);
        }
    }
}

#[test]
fn what_is_too_big_for_a_link_beyond_is_told_from_the_original_destination() {
    for engine in ENGINES {
        // A host keeps what it has learnt of a path, so each engine has a network of its own.
        let net = Topology::narrow(1_300).unwrap();
        let near = &net.routers[0];
        near.ip("route replace default via 10.3.0.1\nroute replace default via fd00:3::1").unwrap();
        let mut tproxy = tproxy_in(&net.gateway, &format!("{FORWARDED} --action direct --steer {engine}"));
        for family in Family::ALL {
            let server = datagrams(&net.server, (family.server(), 0));
            let to = server.local_addr().unwrap();
            let client = client(&net.client, family);
            client.connect(to).unwrap();
            let big = vec![b'x'; 1_400];
            client.send(&big).unwrap();
            let error = told(&client, &*tproxy);
            let too_big = IcmpError::PacketTooBig { mtu: 1_300 };
            assert_eq!(error, PeerError { peer: to, reporter: to.ip(), error: too_big }, "{engine}");
            // What the client's kernel has learnt from it makes the next one arrive, in fragments.
            client.send(&big).unwrap();
            assert_eq!(receive(&server).unwrap_or_else(|e| panic!("{e}\n{}", *tproxy)).0.len(), big.len());
        }
        assert!(counted_at_the_end(&mut tproxy, "icmp_sent") >= 2, "{}", *tproxy);
    }
}

#[test]
fn congestion_marks_are_kept_in_both_directions() {
    let world = World::new();
    for engine in ENGINES {
        let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --steer {engine}"));
        for family in Family::ALL {
            let server = Marked::new(datagrams(&world.net.server, (family.server(), 0)));
            let client = Marked::new(datagrams(&world.net.client, (family.client(), 0)));
            let to = server.socket.local_addr().unwrap();
            for ecn in [None, Some(EcnCodepoint::Ect0), Some(EcnCodepoint::Ect1), Some(EcnCodepoint::Ce)] {
                client.send(to, ecn);
                let (peer, seen) = server.receive(&*tproxy);
                assert_eq!(seen, ecn, "{engine} {family:?}");
                assert_eq!(peer.ip(), family.wan(), "{engine}\n{}", *tproxy);
                server.send(peer, ecn);
                assert_eq!(client.receive(&*tproxy), (to, ecn), "{engine} {family:?} back");
            }
        }
    }
}

/// A socket that sends and shows ECN codepoints.
struct Marked {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Marked {
    fn new(socket: UdpSocket) -> Self {
        let state = UdpSocketState::new(UdpSockRef::from(&socket)).unwrap();
        Self { socket, state }
    }

    fn send(&self, destination: SocketAddr, ecn: Option<EcnCodepoint>) {
        let transmit = Transmit { destination, ecn, contents: b"x", segment_size: None, src_ip: None };
        self.state.try_send(UdpSockRef::from(&self.socket), &transmit).unwrap();
    }

    #[track_caller]
    fn receive(&self, context: &dyn std::fmt::Display) -> (SocketAddr, Option<EcnCodepoint>) {
        let limit = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let events = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(events, 1, "nothing came\n{context}");
        let (mut meta, mut buffer) = ([RecvMeta::default()], [0; 8]);
        let socket = UdpSockRef::from(&self.socket);
        self.state.recv(socket, &mut [IoSliceMut::new(&mut buffer)], &mut meta).unwrap();
        (meta[0].addr, meta[0].ecn)
    }
}
