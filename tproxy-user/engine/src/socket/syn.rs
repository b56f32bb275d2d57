//! What becomes of the first packet of a connection that was held: it is sent in, or answered.

use std::{
    io::{self, IoSlice},
    net::IpAddr,
};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use tproxy_common::packet::tcp_flag;

use super::{
    IcmpError, IcmpSender, SocketError,
    control::SendControl,
    message::TrafficClass,
    privileged,
    raw::{checksum, pseudo_header, raw, send},
};
use crate::{
    family::Family,
    flow::{ClientAddr, OriginalDst},
    mark::Mark,
};

const ETHERNET: usize = 14;
const TCP: u8 = tproxy_common::flow::Protocol::Tcp.number();
const TCP_HEADER: usize = 20;
const TCP_CHECKSUM: usize = 16;
const RST_ACK: u8 = tcp_flag::RST | tcp_flag::ACK;

/// Sends first packets in and answers them. Its sockets are made when they are needed.
#[derive(Debug)]
pub struct SynSender {
    mark: Mark,
    inward: Option<Socket>,
    resets: PerFamily<Socket>,
    errors: PerFamily<IcmpSender>,
}

/// One for each, once it is needed.
type PerFamily<T> = [Option<T>; 2];

impl SynSender {
    /// Without sockets yet.
    #[must_use]
    pub const fn new(mark: Mark) -> Self {
        Self { mark, inward: None, resets: [None, None], errors: [None, None] }
    }

    /// Sends a client's first packet in, as it came, by `lo` and with the steer mark: what sees it there has it come in by the
    /// interface by which it did. `packet` begins with the IP header, TCP's is at `l4`.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] without `CAP_NET_RAW`; else what the kernel says.
    pub fn let_in(
        &mut self,
        client: ClientAddr,
        dst: OriginalDst,
        link: Option<[u8; ETHERNET]>,
        packet: &[u8],
        l4: usize,
    ) -> io::Result<()> {
        let link = link.unwrap_or_else(|| ethernet_header(Family::of(dst.0.ip())));
        let mut frame = [&link, packet].concat();
        let Some((_, segment)) = frame.split_at_mut_checked(ETHERNET + l4) else { return malformed() };
        let Some(sum) = segment.get_mut(TCP_CHECKSUM..TCP_CHECKSUM + 2) else { return malformed() };
        // Of a local sender, or over veth, it may have been left to the hardware.
        sum.fill(0);
        let pseudo = pseudo_header(client.0.ip(), dst.0.ip(), TCP, segment.len() as u16);
        let sum = checksum([&pseudo[..], segment]);
        segment[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
        if self.inward.is_none() {
            self.inward = Some(frames(self.mark).map_err(io::Error::other)?);
        }
        let inward = self.inward.as_ref().expect("it was just made");
        inward.send_to(&frame, &by_loopback()).map(drop)
    }

    /// Refuses a connection as its destination would.
    ///
    /// # Errors
    /// As [`Self::let_in`].
    pub fn reset(
        &mut self,
        client: ClientAddr,
        dst: OriginalDst,
        packet: &[u8],
        l4: usize,
    ) -> io::Result<()> {
        let Some(sequence) = packet.get(l4 + 4..).and_then(<[u8]>::first_chunk) else { return malformed() };
        let mut segment = [0; TCP_HEADER];
        segment[..2].copy_from_slice(&dst.0.port().to_be_bytes());
        segment[2..4].copy_from_slice(&client.0.port().to_be_bytes());
        segment[8..12].copy_from_slice(&u32::from_be_bytes(*sequence).wrapping_add(1).to_be_bytes());
        segment[12] = (TCP_HEADER as u8 / 4) << 4;
        segment[13] = RST_ACK;
        let pseudo = pseudo_header(dst.0.ip(), client.0.ip(), TCP, TCP_HEADER as u16);
        let sum = checksum([&pseudo[..], &segment]);
        segment[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
        let mut packet = ip_header(dst.0.ip(), client.0.ip());
        packet.extend(segment);
        let mark = self.mark;
        let make = |family| raw(family, Protocol::from(libc::IPPROTO_RAW), mark);
        // The way is that of the header's source, which the kernel does not take from there.
        let control = SendControl::new(dst.0.ip(), TrafficClass::default());
        let socket = made(&mut self.resets, Family::of(client.0.ip()), make)?;
        send(socket, client.0.ip(), &control, &[IoSlice::new(&packet)])
    }

    /// Says that there is no way to the destination.
    ///
    /// # Errors
    /// As [`Self::let_in`].
    pub fn unreachable(
        &mut self,
        error: IcmpError,
        client: ClientAddr,
        dst: OriginalDst,
        packet: &[u8],
    ) -> io::Result<()> {
        let mark = self.mark;
        let make = |family| IcmpSender::new(family, mark);
        made(&mut self.errors, Family::of(client.0.ip()), make)?.send_quoting(
            dst.0.ip(),
            error,
            client,
            packet,
        )
    }
}

/// A socket for whole frames. Without a protocol it receives none (packet(7)).
fn frames(mark: Mark) -> Result<Socket, SocketError> {
    let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), None)
        .map_err(privileged("socket(AF_PACKET)"))?;
    socket.set_mark(mark.steer()).map_err(privileged("SO_MARK"))?;
    Ok(socket)
}

/// Of `lo`.
fn by_loopback() -> SockAddr {
    const LOOPBACK: i32 = 1;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage has room for every address, of which all bytes are numbers.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = LOOPBACK;
    // SAFETY: of these bytes it consists.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

/// For a packet that had none.
fn ethernet_header(family: Family) -> [u8; ETHERNET] {
    let ether_type: u16 = match family {
        Family::V4 => 0x0800,
        Family::V6 => 0x86dd,
    };
    let mut header = [0; ETHERNET];
    header[12..].copy_from_slice(&ether_type.to_be_bytes());
    header
}

fn made<T>(
    places: &mut PerFamily<T>,
    family: Family,
    make: impl FnOnce(Family) -> Result<T, SocketError>,
) -> io::Result<&mut T> {
    let place = &mut places[usize::from(family == Family::V6)];
    if place.is_none() {
        *place = Some(make(family).map_err(io::Error::other)?);
    }
    Ok(place.as_mut().expect("it was just made"))
}

fn malformed() -> io::Result<()> {
    Err(io::ErrorKind::InvalidData.into())
}

/// For a TCP header alone. Of IPv4, the kernel fills in length, identification and checksum (`raw_send_hdrinc`).
fn ip_header(from: IpAddr, to: IpAddr) -> Vec<u8> {
    const TTL: u8 = 64;
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let dont_fragment = 0x40;
            let mut header = vec![0x45, 0, 0, 0, 0, 0, dont_fragment, 0, TTL, TCP, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        (from, to) => {
            let v6 = |address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            let mut header = vec![0x60, 0, 0, 0, 0, TCP_HEADER as u8, TCP, TTL];
            header.extend(v6(from));
            header.extend(v6(to));
            header
        }
    }
}
