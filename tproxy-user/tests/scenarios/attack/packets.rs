//! Packets by hand.

use std::net::IpAddr;

use etherparse::{Ipv4Header, TcpHeader, UdpHeader, checksum::Sum16BitWords};

use crate::support::*;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Where it comes from and goes to.
#[derive(Clone, Copy)]
pub(super) enum Ends {
    V4([u8; 4], [u8; 4]),
    V6([u8; 16], [u8; 16]),
}

impl Ends {
    /// From the client to the server.
    pub(super) fn of(family: Family) -> Self {
        Self::between(family.client(), family.server())
    }

    pub(super) fn between(src: IpAddr, dst: IpAddr) -> Self {
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => Self::V4(src.octets(), dst.octets()),
            (IpAddr::V6(src), IpAddr::V6(dst)) => Self::V6(src.octets(), dst.octets()),
            _ => panic!("{src} and {dst} are of two families"),
        }
    }

    /// The other way.
    pub(super) fn turned(self) -> Self {
        match self {
            Self::V4(src, dst) => Self::V4(dst, src),
            Self::V6(src, dst) => Self::V6(dst, src),
        }
    }

    /// With an IP header before it.
    pub(super) fn packet(self, next: u8, payload: &[u8]) -> Vec<u8> {
        self.header(next, payload, 0, 0, &[])
    }

    /// IPv4's flags and offset, and its options.
    pub(super) fn with(self, next: u8, payload: &[u8], fragment: u16, options: &[u8]) -> Vec<u8> {
        self.header(next, payload, 0, fragment, options)
    }

    fn header(self, next: u8, payload: &[u8], id: u16, fragment: u16, options: &[u8]) -> Vec<u8> {
        match self {
            Self::V4(src, dst) => {
                let length = 20 + options.len();
                let mut header = vec![0x40 | (length / 4) as u8, 0];
                header.extend(((length + payload.len()) as u16).to_be_bytes());
                header.extend([id, fragment].map(u16::to_be_bytes).concat());
                header.extend([64, next, 0, 0]);
                header.extend([src, dst].concat());
                header.extend(options);
                finish(&mut header);
                [&header, payload].concat()
            }
            Self::V6(src, dst) => {
                let length = (payload.len() as u16).to_be_bytes();
                [&[0x60, 0, 0, 0, length[0], length[1], next, 64][..], &src, &dst, payload].concat()
            }
        }
    }

    /// To port 80.
    pub(super) fn segment(self, sport: u16, flags: &[Flag], options: &[u8], data: &[u8]) -> Vec<u8> {
        let mut header = TcpHeader::new(sport, 80, 1000, u16::MAX);
        header.set_options_raw(options).expect("whole words of options");
        for flag in flags {
            flag(&mut header);
        }
        header.checksum = match self {
            Self::V4(src, dst) => header.calc_checksum_ipv4_raw(src, dst, data),
            Self::V6(src, dst) => header.calc_checksum_ipv6_raw(src, dst, data),
        }
        .expect("its length has room");
        [&header.to_bytes(), data].concat()
    }

    /// A SYN to port 80.
    pub(super) fn syn(self, sport: u16) -> Vec<u8> {
        self.segment(sport, &[SYN], &[], &[])
    }

    pub(super) fn datagram(self, sport: u16, dport: u16, data: &[u8]) -> Vec<u8> {
        let header = match self {
            Self::V4(src, dst) => {
                let header = Ipv4Header::new(0, 64, UDP.into(), src, dst).expect("it has no payload yet");
                UdpHeader::with_ipv4_checksum(sport, dport, &header, data)
            }
            Self::V6(src, dst) => {
                let header = etherparse::Ipv6Header { source: src, destination: dst, ..Default::default() };
                UdpHeader::with_ipv6_checksum(sport, dport, &header, data)
            }
        };
        [&header.expect("its length has room").to_bytes()[..], data].concat()
    }

    /// What is cut at these bytes of it, which are multiples of eight.
    pub(super) fn fragments(self, next: u8, id: u16, whole: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
        let starts = [0].iter().chain(cuts);
        let ends = cuts.iter().copied().chain([whole.len()]);
        let piece = |(start, end): (&usize, usize)| {
            let more = end < whole.len();
            match self {
                Self::V4(..) => {
                    let fragment = (*start / 8) as u16 | u16::from(more) << 13;
                    self.header(next, &whole[*start..end], id, fragment, &[])
                }
                Self::V6(..) => {
                    let offset = (*start as u16 | u16::from(more)).to_be_bytes();
                    let [high, low] = id.to_be_bytes();
                    let header = [next, 0, offset[0], offset[1], 0, 0, high, low];
                    self.packet(FRAGMENT, &[&header, &whole[*start..end]].concat())
                }
            }
        };
        starts.zip(ends).map(piece).collect()
    }

    /// Behind so many headers with options that say nothing.
    pub(super) fn behind(self, headers: usize, next: u8, payload: &[u8]) -> Vec<u8> {
        let (mut next, mut payload) = (next, payload.to_vec());
        for _ in 0..headers {
            payload = [&[next, 0, 1, 4, 0, 0, 0, 0], &payload[..]].concat();
            next = DESTINATION_OPTIONS;
        }
        self.packet(next, &payload)
    }
}

/// One that is set.
pub(super) type Flag = fn(&mut TcpHeader);
pub(super) const SYN: Flag = |header| header.syn = true;

/// The sum of an IPv4 header, which routers look at.
pub(super) fn finish(header: &mut [u8]) {
    let length = (usize::from(header[0] & 0x0f) * 4).min(header.len()) & !1;
    header[10..12].fill(0);
    let sum = Sum16BitWords::new().add_slice(&header[..length]).ones_complement().to_be();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}
