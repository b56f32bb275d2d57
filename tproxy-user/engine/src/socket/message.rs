//! UDP messages, with what their IP headers say: received several at once, and sent several datagrams as one, where the
//! kernel can (`UDP_GRO`, `UDP_SEGMENT`, udp(7)).

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsFd, AsRawFd},
    ptr,
};

use socket2::{MsgHdr, SockAddr, SockRef};

use super::control::SendControl;

/// DSCP and ECN: IPv4's TOS, IPv6's traffic class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TrafficClass(pub u8);

impl TrafficClass {
    /// That of a packet, from its IP header on; the usual one where there is none.
    pub(crate) const fn of_packet(packet: &[u8]) -> Self {
        match *packet {
            [first, second, ..] if first >> 4 == 6 => Self(first << 4 | second >> 4),
            [_, class, ..] => Self(class),
            _ => Self(0),
        }
    }

    /// Without what is a connection's own business.
    pub(crate) const fn without_ecn(self) -> u8 {
        const ECN: u8 = 3;
        self.0 & !ECN
    }
}

/// How a datagram came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pieces {
    /// In one packet.
    #[default]
    One,
    /// In fragments.
    Many,
}

/// A datagram, or several of one flow and one size, of which the last may be shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Who sent it.
    pub from: SocketAddr,
    /// Where it was to go; a listener is told.
    pub dst: Option<SocketAddr>,
    /// Its TTL or hop limit; a listener is told.
    pub ttl: Option<u8>,
    /// Its class.
    pub class: TrafficClass,
    /// How it came; sockets towards clients are told.
    pub pieces: Pieces,
    /// Bytes.
    pub length: usize,
    /// Bytes of each datagram but the last.
    pub size: usize,
}

impl Message {
    /// What is there before one was received.
    pub const NOTHING: Self = Self {
        from: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        dst: None,
        ttl: None,
        class: TrafficClass(0),
        pieces: Pieces::One,
        length: 0,
        size: 0,
    };
}

/// Datagrams to one place.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// Where they go.
    pub to: SocketAddr,
    /// Their class.
    pub class: TrafficClass,
    /// What is in them, one after the other.
    pub contents: &'a [u8],
    /// Bytes of each but the last, if there are several.
    pub segment: Option<u16>,
}

/// Sends them by one call.
///
/// # Errors
/// As sendmsg(2).
pub fn send_message(socket: &impl AsFd, outgoing: &Outgoing<'_>) -> io::Result<()> {
    let mut control = SendControl::of_class(outgoing.to.ip(), outgoing.class);
    if let Some(size) = outgoing.segment {
        control.segment(size);
    }
    let to = SockAddr::from(outgoing.to);
    let contents = [io::IoSlice::new(outgoing.contents)];
    let message = MsgHdr::new().with_addr(&to).with_buffers(&contents).with_control(control.bytes());
    loop {
        match SockRef::from(socket).sendmsg(&message, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(drop),
        }
    }
}

/// Control messages: an address, a class, a TTL, and two numbers, with their headers (cmsg(3)).
#[repr(C, align(8))]
struct ControlRoom([u8; 192]);

/// Receives messages that are there, each into its part of `memory`, of which all are `each` bytes long, and says how many.
///
/// # Errors
/// `WouldBlock` when there is none; else the socket's pending error, which this clears (`sock_error`).
pub fn receive_messages<const N: usize>(
    socket: &impl AsFd,
    memory: &mut [u8],
    each: usize,
    messages: &mut [Message; N],
) -> io::Result<usize> {
    let mut names = [const { mem::MaybeUninit::<libc::sockaddr_storage>::uninit() }; N];
    let mut rooms = [const { mem::MaybeUninit::<ControlRoom>::uninit() }; N];
    let mut chunks = memory.chunks_exact_mut(each);
    let mut buffers: [libc::iovec; N] = std::array::from_fn(|_| {
        let chunk = chunks.next().unwrap_or_default();
        libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: chunk.len() }
    });
    let mut headers: [libc::mmsghdr; N] = std::array::from_fn(|index| {
        // SAFETY: all of its fields are numbers and pointers, for which zero is a value.
        let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
        header.msg_hdr.msg_name = names[index].as_mut_ptr().cast();
        header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        header.msg_hdr.msg_iov = &raw mut buffers[index];
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_control = rooms[index].as_mut_ptr().cast();
        header.msg_hdr.msg_controllen = size_of::<ControlRoom>() as _;
        header
    });
    let socket = socket.as_fd().as_raw_fd();
    let received = loop {
        // SAFETY: each header names pieces of memory that outlive the call, with their lengths.
        let received = unsafe {
            libc::recvmmsg(socket, headers.as_mut_ptr(), N as _, libc::MSG_DONTWAIT as _, ptr::null_mut())
        };
        match usize::try_from(received) {
            Ok(received) => break received,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    };
    for (header, message) in headers.iter().zip(&mut *messages).take(received) {
        // SAFETY: the kernel has written this header's name and control messages, and how long they are.
        *message = unsafe { read(header) };
    }
    Ok(received)
}

/// # Safety
/// The kernel has received by `header`, and what it points to is still there.
unsafe fn read(header: &libc::mmsghdr) -> Message {
    let length = header.msg_len as usize;
    let mut message = Message { length, size: length, ..Message::NOTHING };
    // SAFETY: as demanded; a socket of ours is of one of the two families.
    if let Some(from) = unsafe { address(header.msg_hdr.msg_name.cast()) } {
        message.from = from;
    }
    // SAFETY: as demanded.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const header.msg_hdr) };
    while !next.is_null() {
        // SAFETY: the kernel has written it, and each kind is as long as what is read of it.
        unsafe {
            let data = libc::CMSG_DATA(next);
            let number = || data.cast::<libc::c_int>().read_unaligned();
            match ((*next).cmsg_level, (*next).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_TOS) => message.class = TrafficClass(*data),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => message.class = TrafficClass(number() as u8),
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    message.ttl = Some(number() as u8);
                }
                (libc::IPPROTO_IP, libc::IP_ORIGDSTADDR) | (libc::IPPROTO_IPV6, libc::IPV6_ORIGDSTADDR) => {
                    message.dst = address(data);
                }
                (libc::IPPROTO_IP, IP_RECVFRAGSIZE) | (libc::IPPROTO_IPV6, IPV6_RECVFRAGSIZE) => {
                    message.pieces = Pieces::Many;
                }
                (libc::SOL_UDP, libc::UDP_GRO) => message.size = number() as usize,
                _ => {}
            }
            next = libc::CMSG_NXTHDR(&raw const header.msg_hdr, next);
        }
    }
    message
}

/// `linux/in.h` and `linux/in6.h`: of a datagram that came in fragments, how long the longest was.
pub(super) const IP_RECVFRAGSIZE: libc::c_int = 25;
pub(super) const IPV6_RECVFRAGSIZE: libc::c_int = 77;

/// # Safety
/// `from` points to an address of a family that begins with its number, or to bytes that are none of the two known here.
unsafe fn address(from: *const u8) -> Option<SocketAddr> {
    // SAFETY: as demanded; what a family has is as long as its structure.
    unsafe {
        match libc::c_int::from(from.cast::<libc::sa_family_t>().read_unaligned()) {
            libc::AF_INET => {
                let address = from.cast::<libc::sockaddr_in>().read_unaligned();
                let ip = Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes());
                Some((ip, u16::from_be(address.sin_port)).into())
            }
            libc::AF_INET6 => {
                let address = from.cast::<libc::sockaddr_in6>().read_unaligned();
                let (ip, port) = (Ipv6Addr::from(address.sin6_addr.s6_addr), u16::from_be(address.sin6_port));
                Some(SocketAddrV6::new(ip, port, 0, address.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}
