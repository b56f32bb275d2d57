//! Frames described rather than spelled out, so that one that fails can be read.

use std::net::IpAddr;

use proptest::prelude::*;

use crate::policy::generate::{address, port};

pub(super) const ETHERNET: usize = 14;
const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// An Ethernet frame, and what was done to it.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    /// Whether its destination MAC is the interface's.
    pub(super) to_us: bool,
    /// Another EtherType than that of its content.
    pub(super) ether_type: Option<u16>,
    pub(super) content: Content,
    /// Bytes, by their offset from the IP header, that were changed.
    pub(super) lies: Vec<(usize, u8)>,
    /// It ends before this many bytes of its content.
    pub(super) cut: Option<usize>,
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    Ip(Ip),
    Bytes(Vec<u8>),
}

/// A packet of either family.
#[derive(Debug, Clone)]
pub(super) struct Ip {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) ttl: u8,
    /// IPv4: up to ten words.
    pub(super) options: Vec<[u8; 4]>,
    /// IPv4: flags and offset as in the header.
    pub(super) fragment: u16,
    /// IPv6.
    pub(super) extensions: Vec<Extension>,
    pub(super) payload: Payload,
}

#[derive(Debug, Clone)]
pub(super) enum Extension {
    HopByHop { units: u8 },
    Destination { units: u8 },
    Routing { units: u8 },
    Authentication { words: u8 },
    Fragment { offset_and_more: u16 },
}

#[derive(Debug, Clone)]
pub(super) enum Payload {
    Tcp(Tcp),
    Icmp { kind: u8, quoted: Option<Box<Ip>> },
    Udp { sport: u16, dport: u16 },
    Other { protocol: u8, bytes: Vec<u8> },
}

#[derive(Debug, Clone)]
pub(super) struct Tcp {
    pub(super) sport: u16,
    pub(super) dport: u16,
    pub(super) sequence: u32,
    pub(super) acknowledgement: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    /// Up to ten words.
    pub(super) options: Vec<[u8; 4]>,
    pub(super) data: Vec<u8>,
}

impl Frame {
    /// Neither changed nor cut.
    pub(super) fn of(ip: Ip) -> Self {
        Self { to_us: true, ether_type: None, content: Content::Ip(ip), lies: vec![], cut: None }
    }

    /// From the IP header on; never fewer than the kernel runs a program for.
    pub(super) fn packet(&self) -> Vec<u8> {
        let mut bytes = match &self.content {
            Content::Ip(ip) => ip.bytes(),
            Content::Bytes(bytes) => bytes.clone(),
        };
        for (at, byte) in &self.lies {
            if let Some(told) = bytes.get_mut(*at) {
                *told = *byte;
            }
        }
        bytes.truncate(self.cut.unwrap_or(usize::MAX));
        bytes
    }

    /// On an interface with this MAC.
    pub(super) fn bytes(&self, mac: [u8; 6]) -> Vec<u8> {
        const SOMEBODY: [u8; 6] = [2, 0, 0, 0, 0, 1];
        let of_content = match &self.content {
            Content::Ip(Ip { src: IpAddr::V6(_), .. }) => 0x86dd,
            _ => 0x0800_u16,
        };
        let to = if self.to_us { mac } else { [2, 0, 0, 0, 0, 2] };
        let ether_type = self.ether_type.unwrap_or(of_content).to_be_bytes();
        [&to[..], &SOMEBODY, &ether_type, &self.packet()].concat()
    }
}

impl Ip {
    /// A SYN to port 80.
    pub(super) fn syn(src: IpAddr, dst: IpAddr) -> Self {
        let tcp = Tcp {
            sport: 1025,
            dport: 80,
            sequence: 1,
            acknowledgement: 0,
            flags: SYN,
            window: 0xffff,
            options: vec![],
            data: vec![],
        };
        let payload = Payload::Tcp(tcp);
        Self { src, dst, ttl: 64, options: vec![], fragment: 0, extensions: vec![], payload }
    }

    fn bytes(&self) -> Vec<u8> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let (protocol, payload) = self.payload.bytes(&src.octets(), &dst.octets());
                let header = 20 + self.options.len() * 4;
                let [id, total] = [0x1234, (header + payload.len()) as u16].map(u16::to_be_bytes);
                let mut bytes = vec![0x40 | (header / 4) as u8, 0];
                bytes.extend([total, id, self.fragment.to_be_bytes()].concat());
                bytes.extend([self.ttl, protocol, 0, 0]);
                bytes.extend([src.octets(), dst.octets()].concat());
                bytes.extend(self.options.concat());
                let sum = checksum(&bytes);
                bytes[10..12].copy_from_slice(&sum);
                bytes.extend(payload);
                bytes
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let (mut next, mut content) = self.payload.bytes(&src.octets(), &dst.octets());
                for extension in self.extensions.iter().rev() {
                    content = [extension.bytes(next), content].concat();
                    next = extension.protocol();
                }
                let mut bytes = vec![0x60, 0, 0, 0];
                bytes.extend((content.len() as u16).to_be_bytes());
                bytes.extend([next, self.ttl]);
                bytes.extend([src.octets(), dst.octets()].concat());
                bytes.extend(content);
                bytes
            }
            _ => unreachable!("generated of one family"),
        }
    }
}

impl Extension {
    const fn protocol(&self) -> u8 {
        match self {
            Self::HopByHop { .. } => 0,
            Self::Routing { .. } => 43,
            Self::Fragment { .. } => 44,
            Self::Authentication { .. } => 51,
            Self::Destination { .. } => 60,
        }
    }

    fn bytes(&self, next: u8) -> Vec<u8> {
        let (length, size) = match self {
            Self::HopByHop { units } | Self::Destination { units } | Self::Routing { units } => {
                (*units, (usize::from(*units) + 1) * 8)
            }
            Self::Authentication { words } => (*words, (usize::from(*words) + 2) * 4),
            Self::Fragment { .. } => (0, 8),
        };
        let mut bytes = vec![0; size];
        bytes[..2].copy_from_slice(&[next, length]);
        if let Self::Fragment { offset_and_more } = self {
            bytes[2..4].copy_from_slice(&offset_and_more.to_be_bytes());
        }
        bytes
    }
}

impl Payload {
    /// Its protocol and bytes.
    fn bytes(&self, src: &[u8], dst: &[u8]) -> (u8, Vec<u8>) {
        match self {
            Self::Tcp(tcp) => (TCP, tcp.bytes(src, dst)),
            Self::Icmp { kind, quoted } => {
                let quoted = quoted.as_ref().map_or(vec![], |ip| ip.bytes());
                let protocol = if src.len() == 4 { ICMP } else { ICMPV6 };
                (protocol, [&[*kind, 0, 0, 0, 0, 0, 0, 0][..], &quoted].concat())
            }
            Self::Udp { sport, dport } => (UDP, [*sport, *dport, 8, 0].map(u16::to_be_bytes).concat()),
            Self::Other { protocol, bytes } => (*protocol, bytes.clone()),
        }
    }
}

impl Tcp {
    fn bytes(&self, src: &[u8], dst: &[u8]) -> Vec<u8> {
        let mut bytes = [self.sport, self.dport].map(u16::to_be_bytes).concat();
        bytes.extend([self.sequence, self.acknowledgement].map(u32::to_be_bytes).concat());
        bytes.extend([((5 + self.options.len()) << 4) as u8, self.flags]);
        bytes.extend([self.window, 0, 0].map(u16::to_be_bytes).concat());
        bytes.extend(self.options.concat());
        bytes.extend(&self.data);
        let pseudo_header = [src, dst, &[0, TCP], &(bytes.len() as u16).to_be_bytes()].concat();
        let sum = checksum(&[&pseudo_header[..], &bytes].concat());
        bytes[16..18].copy_from_slice(&sum);
        bytes
    }
}

/// Of RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Packets that rules look at for certain.
pub(super) fn syn() -> impl Strategy<Value = Ip> {
    ip(tcp(Just(SYN)).prop_map(Payload::Tcp))
}

/// The same of UDP.
pub(super) fn datagram() -> impl Strategy<Value = Ip> {
    ip(udp()).prop_map(|ip| Ip { fragment: 0, extensions: vec![], ..ip })
}

/// What may be seen of a datagram, or of its answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Whole,
    First,
    Middle,
    Last,
    Answer,
}

impl Ip {
    pub(super) fn part(mut self, part: Part) -> Self {
        let (v4, v6) = match part {
            Part::Whole => return self,
            Part::First => (0x2000, 1),
            Part::Middle => (0x2001, 9),
            Part::Last => (0x0002, 16),
            Part::Answer => {
                std::mem::swap(&mut self.src, &mut self.dst);
                if let Payload::Udp { sport, dport } = &mut self.payload {
                    std::mem::swap(sport, dport);
                }
                return self;
            }
        };
        self.fragment = v4;
        self.extensions.push(Extension::Fragment { offset_and_more: v6 });
        self
    }
}

/// Whatever may arrive.
pub(super) fn frame() -> impl Strategy<Value = Frame> {
    let content = prop_oneof![
        6 => syn().prop_map(Content::Ip),
        6 => ip(payload()).prop_map(Content::Ip),
        1 => prop::collection::vec(any::<u8>(), 14..120).prop_map(Content::Bytes),
    ];
    let ether_type = prop_oneof![
        12 => Just(None),
        // VLAN, ARP, MPLS, IPv4, IPv6, a length (802.3).
        1 => prop::sample::select(vec![0x8100, 0x0806, 0x8847, 0x0800, 0x86dd, 0x0026]).prop_map(Some),
    ];
    let lie = prop_oneof![
        (0_usize..120, any::<u8>()),
        (0_usize..60, prop::sample::select(vec![0, 6, 44, 60, 0xff]))
    ];
    let lies = prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec(lie, 1..4)];
    let cut = prop_oneof![3 => Just(None), 1 => (0_usize..140).prop_map(Some)];
    (prop::bool::weighted(0.95), ether_type, content, lies, cut)
        .prop_map(|(to_us, ether_type, content, lies, cut)| Frame { to_us, ether_type, content, lies, cut })
}

fn payload() -> impl Strategy<Value = Payload> {
    let quoted = prop::option::weighted(0.9, ip(tcp(any::<u8>()).prop_map(Payload::Tcp)).prop_map(Box::new));
    let kind = prop_oneof![4 => prop::sample::select(vec![1_u8, 2, 3, 4, 5, 11, 12, 137]), 1 => any::<u8>()];
    let other = (any::<u8>(), prop::collection::vec(any::<u8>(), 0..40));
    prop_oneof![
        2 => tcp(prop::sample::select(vec![ACK, SYN | ACK, RST, RST | ACK])).prop_map(Payload::Tcp),
        2 => tcp(any::<u8>()).prop_map(Payload::Tcp),
        2 => (kind, quoted).prop_map(|(kind, quoted)| Payload::Icmp { kind, quoted }),
        1 => udp(),
        1 => other.prop_map(|(protocol, bytes)| Payload::Other { protocol, bytes }),
    ]
}

fn udp() -> impl Strategy<Value = Payload> {
    (port(), port()).prop_map(|(sport, dport)| Payload::Udp { sport, dport })
}

fn ip(payload: impl Strategy<Value = Payload>) -> impl Strategy<Value = Ip> {
    let ends =
        prop_oneof![8 => (address(), address()), 1 => (special(), address()), 1 => (address(), special())]
            .prop_map(|(src, dst)| match (src, dst) {
                (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => (dst, dst),
                ends => ends,
            });
    let fragment = prop_oneof![8 => Just(0), 1 => Just(0x4000), 1 => Just(0x2000), 1 => any::<u16>()];
    let extensions = prop_oneof![2 => Just(vec![]), 1 => prop::collection::vec(extension(), 1..10)];
    (ends, any::<u8>(), words(), fragment, extensions, payload).prop_map(
        |((src, dst), ttl, options, fragment, extensions, payload)| Ip {
            src,
            dst,
            ttl,
            options,
            fragment,
            extensions,
            payload,
        },
    )
}

fn extension() -> impl Strategy<Value = Extension> {
    prop_oneof![
        (0_u8..4).prop_map(|units| Extension::HopByHop { units }),
        (0_u8..4).prop_map(|units| Extension::Destination { units }),
        (0_u8..4).prop_map(|units| Extension::Routing { units }),
        (0_u8..8).prop_map(|words| Extension::Authentication { words }),
        prop::sample::select(vec![0, 1, 8, 0xfff8])
            .prop_map(|offset_and_more| Extension::Fragment { offset_and_more }),
    ]
}

/// Nothing is intercepted from or to these.
fn special() -> impl Strategy<Value = IpAddr> {
    prop::sample::select(vec![
        "224.0.0.1",
        "255.255.255.255",
        "169.254.0.1",
        "0.0.0.0",
        "fe80::1",
        "ff02::1",
        "::",
    ])
    .prop_map(|text| text.parse().unwrap())
}

fn tcp(flags: impl Strategy<Value = u8>) -> impl Strategy<Value = Tcp> {
    let data = prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec(any::<u8>(), 0..9)];
    (1_u16..4, port(), any::<u32>(), any::<u32>(), flags, any::<u16>(), words(), data).prop_map(
        |(sport, dport, sequence, acknowledgement, flags, window, options, data)| Tcp {
            sport,
            dport,
            sequence,
            acknowledgement,
            flags,
            window,
            options,
            data,
        },
    )
}

fn words() -> impl Strategy<Value = Vec<[u8; 4]>> {
    prop_oneof![2 => Just(vec![]), 1 => prop::collection::vec(any::<[u8; 4]>(), 1..11)]
}
