//! The first packet of a flow: a SYN, or a datagram. Nobody looks at checksums before a socket does.

use std::net::{IpAddr, SocketAddr};

use tproxy_common::flow::Protocol;

/// With an Ethernet header, to the interface with this address.
pub(super) fn first(
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
    mac: [u8; 6],
) -> Vec<u8> {
    let payload = match protocol {
        Protocol::Tcp => syn(source.port(), destination.port()),
        Protocol::Udp => datagram(source.port(), destination.port()),
    };
    let (ether_type, header) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let total = (20 + payload.len()) as u16;
            let mut header = vec![0x45, 0];
            header.extend(total.to_be_bytes());
            // Identification, DF, TTL, protocol, checksum.
            header.extend([0, 0, 0x40, 0, 64, protocol.number(), 0, 0]);
            header.extend([src.octets(), dst.octets()].concat());
            (0x0800_u16, header)
        }
        (src, dst) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend((payload.len() as u16).to_be_bytes());
            header.extend([protocol.number(), 64]);
            header.extend([octets(src), octets(dst)].concat());
            (0x86dd, header)
        }
    };
    [&mac[..], &[2, 0, 0, 0, 0, 1], &ether_type.to_be_bytes(), &header, &payload].concat()
}

fn octets(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped().octets(),
        IpAddr::V6(addr) => addr.octets(),
    }
}

fn syn(source: u16, destination: u16) -> Vec<u8> {
    const SYN: u8 = 2;
    let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    // Sequence, acknowledgement, length in words, flags, window, checksum, urgent pointer.
    [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, SYN, 0xff, 0xff, 0, 0, 0, 0]].concat()
}

fn datagram(source: u16, destination: u16) -> Vec<u8> {
    let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    [&ports[..], &[0, 8, 0, 0]].concat()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;
    use tproxy_common::packet::{Kind, Reader, parse};

    use super::*;

    struct Bytes(Vec<u8>);

    impl Reader for Bytes {
        fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            self.0.get(offset..)?.first_chunk().copied()
        }

        fn size(&self) -> usize {
            self.0.len()
        }
    }

    fn endpoints() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
        let v4 = || any::<(Ipv4Addr, u16)>().prop_map(SocketAddr::from);
        // Mapped addresses are asked about as IPv4.
        let v6 = || {
            any::<(Ipv6Addr, u16)>()
                .prop_filter("mapped", |(addr, _)| addr.to_ipv4_mapped().is_none())
                .prop_map(SocketAddr::from)
        };
        prop_oneof![(v4(), v4()), (v6(), v6())]
    }

    proptest! {
        #[test]
        fn the_datapath_reads_what_was_meant((source, destination) in endpoints(), mac: [u8; 6]) {
            for (protocol, kind) in [(Protocol::Tcp, Kind::Syn), (Protocol::Udp, Kind::Datagram)] {
                let parsed = parse(&Bytes(first(protocol, source, destination, mac)), 14).unwrap();
                prop_assert_eq!((parsed.protocol, parsed.kind), (protocol, kind));
                for (addr, port, meant) in [
                    (parsed.tuple.src, parsed.tuple.sport, source),
                    (parsed.tuple.dst, parsed.tuple.dport, destination),
                ] {
                    prop_assert_eq!(SocketAddr::new(addr.into(), u16::from_be_bytes(port)), meant);
                }
            }
        }
    }
}
