//! What sockets of the server would receive, by sockets that receive a copy of it.

use std::{
    io::ErrorKind,
    net::{IpAddr, UdpSocket},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::packets::{Ends, UDP};
use crate::{attack::wire::Wire, support::*};

/// To which nothing is sent that a rule selects.
const MARKER: u16 = 9;

/// One for each family and protocol.
pub(super) struct Server(Vec<(Family, Protocol, UdpSocket)>);

/// A packet that a socket of this port would have received, if there were one.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) sport: u16,
    pub(super) dport: u16,
    pub(super) protocol: Protocol,
    /// From IPv4's header on; in IPv6, from that of TCP or UDP on.
    #[expect(dead_code, reason = "a failed assertion shows it")]
    pub(super) packet: Vec<u8>,
    /// From the IP header.
    #[expect(dead_code, reason = "a failed assertion shows it")]
    pub(super) from: IpAddr,
}

impl Server {
    pub(super) fn listen(net: &Topology) -> Self {
        let protocols = [Protocol::TCP, Protocol::UDP];
        let kinds = Family::ALL.into_iter().flat_map(|family| protocols.map(|protocol| (family, protocol)));
        let listen = |(family, protocol)| {
            let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
            let socket = Socket::new(domain, Type::RAW, Some(protocol)).expect("raw(7)");
            socket.set_recv_buffer_size(64 << 20).expect("SO_RCVBUF");
            socket.set_nonblocking(true).expect("O_NONBLOCK");
            (family, protocol, UdpSocket::from(socket))
        };
        Self(net.server.enter(|| kinds.map(listen).collect()))
    }

    /// All since the last time. Whatever was sent by the wire before has been received, or never will be.
    pub(super) fn receive(&self, net: &Topology, wire: &Wire) -> Vec<Received> {
        for family in Family::ALL {
            let there = datagrams(&net.server, (family.server(), MARKER));
            let ends = Ends::of(family);
            wire.send(&[], &ends.packet(UDP, &ends.datagram(MARKER, MARKER, b"all")));
            there.recv(&mut [0; 8]).unwrap_or_else(|error| panic!("the marker does not come: {error}"));
        }
        self.0.iter().flat_map(|(family, protocol, socket)| drain(*family, *protocol, socket)).collect()
    }
}

fn drain(family: Family, protocol: Protocol, socket: &UdpSocket) -> Vec<Received> {
    let mut received = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer) {
            Ok(one) => one,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return received,
            Err(error) => panic!("raw socket: {error}"),
        };
        let packet = &buffer[..length];
        // IPv4's header is part of what is received (raw(7)), IPv6's is not (RFC 3542, 3).
        let header = if family == Family::V4 { usize::from(packet[0] & 0x0f) * 4 } else { 0 };
        let ports = packet.get(header..).and_then(|bytes| ports(family, protocol, bytes));
        received.extend(ports.map(|[sport, dport]| Received {
            sport,
            dport,
            protocol,
            from: from.ip(),
            packet: packet.to_vec(),
        }));
    }
}

/// Those of what a socket would receive, whatever its sum, which could be right: by `tcp_v4_rcv`, `tcp_rcv_state_process` of a
/// listener, `__udp4_lib_rcv` and their like.
fn ports(family: Family, protocol: Protocol, bytes: &[u8]) -> Option<[u16; 2]> {
    let word = |at: usize| bytes.get(at..at + 2).map(|word| u16::from_be_bytes([word[0], word[1]]));
    let ports = [word(0)?, word(2)?];
    let is_received = if protocol == Protocol::TCP {
        const SYN_ACK_RST: u8 = 0x02 | 0x10 | 0x04;
        let header = usize::from(*bytes.get(12)? >> 4) * 4;
        (20..=bytes.len()).contains(&header) && bytes[13] & SYN_ACK_RST == 0x02
    } else {
        let length = match word(4)? {
            0 if family == Family::V6 => bytes.len(),
            length => usize::from(length),
        };
        (8..=bytes.len()).contains(&length)
    };
    is_received.then_some(ports)
}
