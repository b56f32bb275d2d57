//! A packet, by the datapath's parser and by `etherparse`. Where both can read it, it is the same to both; and what only one
//! of them can read is of a kind that is named here.

use etherparse::{
    Ipv6ExtensionSlice, LaxNetSlice, LaxSlicedPacket, TcpSlice, TransportSlice, UdpSlice, ether_type,
    ip_number,
};
use tproxy_common::{
    addr::Addr,
    flow::Protocol,
    packet::{Kind, Packet, Piece, parse, ports_of_segment},
};

/// Ethernet's.
const LINK_LAYER: usize = 14;

pub(crate) fn read(bytes: &[u8]) {
    let parsed = parse(bytes, 0);
    let framed = frame(bytes);
    let in_frame =
        parse(&framed[..], LINK_LAYER).map(|packet| Packet { l4: packet.l4 - LINK_LAYER, ..packet });
    assert_eq!(in_frame, parsed, "behind a link-layer header");
    if let Some([sport, dport]) = ports_of_segment(bytes, 0) {
        let packet = parsed.expect("the short cut is no way round the parser");
        assert_eq!((packet.protocol, packet.tuple.sport, packet.tuple.dport), (Protocol::Tcp, sport, dport));
        assert!(packet.kind != Kind::Syn && packet.piece == Piece::Whole, "{packet:?}");
    }
    match (seen(bytes), parsed) {
        (Seen::Transport(other), Ok(packet)) => {
            assert_eq!(packet.tuple.src, other.src);
            assert_eq!(packet.tuple.dst, other.dst);
            // More headers than are looked at.
            if packet.kind != Kind::Hidden {
                let ports = [packet.tuple.sport, packet.tuple.dport].map(u16::from_be_bytes);
                let whole = (packet.protocol, packet.kind, ports, packet.hops, packet.piece);
                assert_eq!(whole, (other.protocol, other.kind, other.ports, other.hops, Piece::Whole));
            }
        }
        (Seen::Transport(other), Err(reason)) => panic!("{reason:?} is passed: {other:?}"),
        (Seen::Fragment { is_first }, Ok(packet)) => {
            // An ICMP error says so in its first fragment.
            let says_it = is_first && packet.kind == Kind::IcmpError;
            assert!(packet.kind == Kind::Hidden || says_it || packet.piece != Piece::Whole, "{packet:?}");
        }
        (Seen::Neither, Ok(packet)) if packet.piece == Piece::Whole => {
            let flows = [Kind::Syn, Kind::Ack, Kind::Other, Kind::Datagram];
            assert!(!flows.contains(&packet.kind), "{packet:?} is read by nobody else");
        }
        (Seen::Fragment { .. } | Seen::Neither | Seen::Anything, _) => {}
    }
}

/// What etherparse makes of it.
#[derive(Debug)]
enum Seen {
    /// A whole packet of TCP or UDP.
    Transport(Transport),
    /// A piece of one.
    Fragment { is_first: bool },
    /// No packet, or none of TCP or UDP whose header can be read.
    Neither,
    /// What it reads otherwise than the kernel does.
    Anything,
}

#[derive(Debug)]
struct Transport {
    src: Addr,
    dst: Addr,
    hops: u8,
    protocol: Protocol,
    ports: [u16; 2],
    kind: Kind,
}

fn seen(bytes: &[u8]) -> Seen {
    let ether_type = match bytes.first().map(|first| first >> 4) {
        Some(4) => ether_type::IPV4,
        Some(6) => ether_type::IPV6,
        _ => return Seen::Neither,
    };
    let sliced = LaxSlicedPacket::from_ether_type(ether_type, bytes);
    let (src, dst, hops, payload, length, is_first) = match &sliced.net {
        Some(LaxNetSlice::Ipv4(four)) => {
            let header = four.header();
            // The kernel has no TCP behind an authentication header that it has not looked into.
            if header.protocol() == ip_number::AUTH {
                return Seen::Anything;
            }
            // It takes what is too short for its own header for one without a length.
            if (1..header.slice().len()).contains(&usize::from(header.total_len())) {
                return Seen::Neither;
            }
            let ends = [header.source(), header.destination()].map(Addr::from_v4);
            let end = usize::from(header.total_len()).checked_sub(header.slice().len());
            (ends[0], ends[1], header.ttl(), four.payload(), end, header.fragments_offset().value() == 0)
        }
        Some(LaxNetSlice::Ipv6(six)) => {
            let header = six.header();
            let ends = [header.source(), header.destination()].map(Addr);
            if ends.iter().any(Addr::is_v4) {
                return Seen::Neither;
            }
            // Headers in an order that RFC 8200 does not know, which the kernel reads all the same; and a length that they
            // exceed.
            if sliced.stop_err.is_some() && !six.extensions().is_empty() {
                return Seen::Anything;
            }
            let length = usize::from(header.payload_length());
            let end = (length != 0).then(|| length.saturating_sub(six.extensions().slice().len()));
            let is_first = six.extensions().clone().into_iter().all(|extension| match extension {
                Ipv6ExtensionSlice::Fragment(fragment) => fragment.fragment_offset().value() == 0,
                _ => true,
            });
            (ends[0], ends[1], header.hop_limit(), six.payload(), end, is_first)
        }
        _ => return Seen::Neither,
    };
    if payload.fragmented {
        return Seen::Fragment { is_first };
    }
    let transport =
        |protocol, ports, kind| Seen::Transport(Transport { src, dst, hops, protocol, ports, kind });
    match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            transport(Protocol::Tcp, [tcp.source_port(), tcp.destination_port()], kind_of_segment(tcp))
        }
        Some(TransportSlice::Udp(udp)) => {
            // Where the packet is cut off, the length that it claims counts.
            let available = length.unwrap_or(payload.payload.len());
            match kind_of_datagram(udp, available, src.is_v4()) {
                Some(kind) => transport(Protocol::Udp, [udp.source_port(), udp.destination_port()], kind),
                None => Seen::Neither,
            }
        }
        // A header whose own length exceeds what is there, but not what the packet claims to be: it was cut off.
        None if payload.incomplete => Seen::Anything,
        _ => Seen::Neither,
    }
}

fn kind_of_segment(tcp: &TcpSlice<'_>) -> Kind {
    match (tcp.syn(), tcp.ack(), tcp.rst()) {
        (true, false, false) => Kind::Syn,
        (false, true, false) => Kind::Ack,
        _ => Kind::Other,
    }
}

fn kind_of_datagram(udp: &UdpSlice<'_>, available: usize, is_v4: bool) -> Option<Kind> {
    const HEADER: usize = 8;
    let length = match udp.length() {
        0 if !is_v4 => HEADER,
        length => usize::from(length),
    };
    (HEADER..=available).contains(&length).then_some(Kind::Datagram)
}

/// As on Ethernet.
fn frame(packet: &[u8]) -> Vec<u8> {
    let ether_type: u16 = if packet.first().is_some_and(|first| first >> 4 == 6) { 0x86dd } else { 0x0800 };
    [&[2; LINK_LAYER - 2][..], &ether_type.to_be_bytes(), packet].concat()
}
