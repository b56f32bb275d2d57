//! TCP sockets: listeners, sockets towards upstreams.
//!
//! They linger for zero seconds: closing one is a reset, until [`close_in_order`] was called. A connection
//! that is cut off (a panic, a stop, `kill -9`) must not look to its ends like one that was complete,
//! and a reset leaves no socket behind that has a foreign address.

use std::{
    io,
    mem::{self, MaybeUninit},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd as _},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Protocol, SockRef, Socket, TcpKeepalive, Type};
use tproxy_common::defaults;

use super::{
    Egress, SocketError, UpstreamSource, bind, bind_foreign, discard_all, get, is_source,
    message::TrafficClass, os, privileged, set_number, transparent,
};
use crate::{family::Family, mark::Mark};

/// Connections that may wait for `accept`; `net.core.somaxconn` caps it.
const BACKLOG: i32 = 4096;

/// Unanswered questions after which a peer has vanished without a word.
const KEEPALIVE_RETRIES: u32 = 6;

/// For connections to which nobody gives another one.
const KEEPALIVE: Duration = Duration::from_secs(defaults::KEEPALIVE);

/// A listener that tc and `sk_lookup` can steer to: transparent, non-blocking, with the own mark.
///
/// It is bound to a loopback address, so that it is not exposed, and to a port of the kernel's choice:
/// steering does not ask what a listener is bound to. What it accepts inherits every option set here,
/// the own mark among them, which makes `net.ipv4.tcp_fwmark_accept` harmless: the kernel copies
/// the mark of a SYN only into a socket whose listener has none (`inet_request_mark`).
///
/// # Errors
/// [`SocketError::Privilege`] without `CAP_NET_ADMIN`, [`SocketError::Os`] for lack of resources.
pub fn listener(family: Family, mark: Mark) -> Result<Socket, SocketError> {
    let socket = marked(family, mark)?;
    transparent(&socket, family)?;
    keep_alive(&socket, KEEPALIVE).map_err(os("SO_KEEPALIVE"))?;
    set_number(&socket, libc::IPPROTO_TCP, TCP_SAVE_SYN, 1).map_err(os("TCP_SAVE_SYN"))?;
    bind_and_listen(&socket, family)?;
    Ok(socket)
}

/// A listener to which nothing gets through: what is steered to it gets no answer at all.
/// `sk_lookup` can choose a socket or refuse, but it cannot discard; this is how it does.
///
/// # Errors
/// As [`listener`].
pub fn black_hole(family: Family, mark: Mark) -> Result<Socket, SocketError> {
    let socket = marked(family, mark)?;
    transparent(&socket, family)?;
    discard_all(&socket)?;
    bind_and_listen(&socket, family)?;
    Ok(socket)
}

/// A socket that is ready to `connect` to `upstream` from the address that `source` says.
///
/// # Errors
/// [`SocketError::Taken`] when the client's port is held by somebody; the same can come to light only
/// at `connect`, as `EADDRNOTAVAIL`. [`SocketError::Family`], [`SocketError::Privilege`], and
/// [`SocketError::Os`] for lack of resources.
pub fn upstream(
    upstream: SocketAddr,
    source: UpstreamSource,
    egress: impl Into<Egress>,
) -> Result<Socket, SocketError> {
    let (family, egress) = (Family::of(upstream.ip()), egress.into());
    let socket = marked(family, egress.mark)?;
    egress.set(&socket)?;
    socket.set_mark(egress.mark()).map_err(privileged("SO_MARK"))?;
    let address = match source {
        UpstreamSource::Host => return Ok(socket),
        UpstreamSource::Own(own) => {
            if is_source(own, family) {
                without_port(&socket)?;
                bind(&socket, SocketAddr::new(own, 0))?;
            }
            return Ok(socket);
        }
        UpstreamSource::Client(client) => {
            without_port(&socket)?;
            SocketAddr::new(client, 0)
        }
        UpstreamSource::ClientPort(client) => {
            // The client may use its port towards many destinations at once, and so must we.
            socket.set_reuse_address(true).map_err(os("SO_REUSEADDR"))?;
            client
        }
    };
    bind_foreign(&socket, family, address)?;
    Ok(socket)
}

/// Without it bind() would reserve a port for this address alone, of which there are 28,000, instead of connect() choosing
/// one that is free towards this upstream.
fn without_port(socket: &Socket) -> Result<(), SocketError> {
    setsockopt(socket, sockopt::IpBindAddressNoPort, &true)
        .map_err(|errno| os("IP_BIND_ADDRESS_NO_PORT")(errno.into()))
}

/// Has the kernel find out, after each such silence, whether the peer is still there. Sockets towards upstreams are made
/// without: these four system calls are a tenth of what a short connection needs, and make no difference to it.
///
/// # Errors
/// The kernel's, which has none for a TCP socket.
pub fn keep_alive(socket: &impl AsFd, silence: Duration) -> io::Result<()> {
    let keepalive =
        TcpKeepalive::new().with_time(silence).with_interval(silence).with_retries(KEEPALIVE_RETRIES);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

/// `linux/tcp.h`
const TCP_SAVE_SYN: libc::c_int = 27;
const TCP_SAVED_SYN: libc::c_int = 28;

/// The class of the SYN that a connection began with; the usual one where that is not known (SYN cookies). To be asked once.
pub fn class_of_syn(accepted: &impl AsFd) -> TrafficClass {
    // The longest headers of IPv4 and TCP; of IPv6 with extensions the beginning is no less.
    let mut headers = [0_u8; 120];
    let length = get(accepted, libc::IPPROTO_TCP, TCP_SAVED_SYN, &mut headers);
    match length {
        Ok(length @ 20..) => TrafficClass::of_packet(&headers[..length.min(headers.len())]),
        _ => TrafficClass::default(),
    }
}

/// The interface by which the last segment of a connection's handshake came in (`mc_index`, `mcast_oif` of
/// `tcp_v4_syn_recv_sock` and `tcp_v6_syn_recv_sock`).
pub fn arrival_interface(accepted: &impl AsFd, family: Family) -> Option<u32> {
    /// `linux/in.h`, `linux/in6.h`
    const IP_PKTOPTIONS: libc::c_int = 9;
    const IPV6_2292PKTOPTIONS: libc::c_int = 6;
    /// Of a control message, cmsg(3), and of the addresses in it.
    const HEADER: usize = size_of::<libc::cmsghdr>();
    let (level, told, options, message, place) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_PKTINFO, IP_PKTOPTIONS, libc::IP_PKTINFO, HEADER),
        Family::V6 => (
            libc::IPPROTO_IPV6,
            libc::IPV6_RECVPKTINFO,
            IPV6_2292PKTOPTIONS,
            libc::IPV6_PKTINFO,
            HEADER + size_of::<libc::in6_addr>(),
        ),
    };
    set_number(accepted, level, told, 1).ok()?;
    let mut room = [0_u8; 256];
    let length = get(accepted, level, options, &mut room);
    // It would have each segment copied.
    let _ = set_number(accepted, level, told, 0);
    let answer = room.get(..length.ok()?)?;
    let word = |at: usize| answer.get(at..)?.first_chunk().copied().map(i32::from_ne_bytes);
    let kind = (word(HEADER - 8)?, word(HEADER - 4)?);
    if kind == (level, message) { word(place)?.try_into().ok() } else { None }
}

/// Where a connection was to go before NAT of this host sent it here, if connection tracking knows it.
pub fn destination_before_nat(accepted: &impl AsFd, family: Family) -> Option<SocketAddr> {
    /// `linux/netfilter_ipv4.h`, and of the same number for IPv6
    const SO_ORIGINAL_DST: libc::c_int = 80;
    let level = match family {
        Family::V4 => libc::IPPROTO_IP,
        Family::V6 => libc::IPPROTO_IPV6,
    };
    let mut room = [0_u8; size_of::<libc::sockaddr_in6>()];
    get(accepted, level, SO_ORIGINAL_DST, &mut room).ok()?;
    let port = u16::from_be_bytes([room[2], room[3]]);
    let address = match family {
        Family::V4 => IpAddr::from(*room[4..].first_chunk::<4>()?),
        Family::V6 => IpAddr::from(*room[8..].first_chunk::<16>()?),
    };
    Some(SocketAddr::new(address, port))
}

/// Gives what a socket sends from now on a class, but for ECN, which is the connection's own business.
///
/// # Errors
/// The kernel's, which has none for a socket of this family.
pub fn set_class(socket: &impl AsFd, family: Family, class: TrafficClass) -> io::Result<()> {
    let socket = SockRef::from(socket);
    match (family, u32::from(class.without_ecn())) {
        (_, 0) => Ok(()),
        (Family::V4, class) => socket.set_tos_v4(class),
        (Family::V6, class) => socket.set_tclass_v6(class),
    }
}

/// How many segments a connection has received, with those that the kernel has answered by itself.
///
/// # Errors
/// The kernel's, which has none for a TCP socket.
pub fn segments_received(socket: &impl AsFd) -> io::Result<u32> {
    /// Where `struct tcp_info` (`linux/tcp.h`) has `tcpi_segs_in`.
    const PLACE: usize = 140;
    let mut info = [0_u8; PLACE + 4];
    get(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    let [.., a, b, c, d] = info;
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

/// Has the last ACK of a handshake wait for the first data and go with it, in one packet instead of two. For who has data
/// to send at once: else the ACK, which some servers wait for in order to speak, is 200 ms late
/// (`tcp_rcv_synsent_state_process`). Once connected, the socket acknowledges like any other.
pub fn join_ack_with_data(socket: &impl AsFd) {
    // It fails for no TCP socket; if it did, there would be two packets.
    let _ = rustix::net::sockopt::set_tcp_quickack(socket, false);
}

/// Whether there is something to be read. The end of the data is none.
pub fn has_data(socket: &impl AsFd) -> bool {
    rustix::io::ioctl_fionread(socket).is_ok_and(|length| length > 0)
}

/// Reads once. Also says whether there is more: a short read alone does not, for it stops at an urgent byte
/// (`tcp_recvmsg`).
///
/// # Errors
/// As read(2).
pub fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    /// A control message with an `int`, cmsg(3).
    #[repr(C)]
    struct WaitingControl {
        header: libc::cmsghdr,
        waiting: libc::c_int,
    }
    let mut bytes = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = MaybeUninit::<WaitingControl>::zeroed();
    // SAFETY: all of its fields are numbers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut bytes, 1);
    (message.msg_control, message.msg_controllen) =
        (control.as_mut_ptr().cast(), size_of::<WaitingControl>() as _);
    // SAFETY: `message` names two pieces of memory that outlive the call, with their lengths.
    let length = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: zeroed, and numbers all; the kernel overwrites a part of it.
    let WaitingControl { header, waiting } = unsafe { control.assume_init() };
    let told = message.msg_controllen > 0 && header.cmsg_type == TCP_INQ;
    // Of the end of the data, the kernel says that one byte is waiting.
    Ok(Received { length, rest: if told && waiting == 0 { Rest::Nothing } else { Rest::Something } })
}

/// What [`receive`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes read; 0 is the end of the data.
    pub length: usize,
    /// What it left.
    pub rest: Rest,
}

/// What is still there to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Nothing, when it was asked.
    Nothing,
    /// More bytes, or the end of the data, or it is not known.
    Something,
}

/// Sends what was written with `MSG_MORE` and waits for more (`tcp_sock_set_nodelay`).
pub fn push(socket: &impl AsFd) {
    // It fails for no TCP socket.
    let _ = SockRef::from(socket).set_tcp_nodelay(true);
}

/// From now on, closing this socket is to its peer the end of the data and not a reset.
/// What is still to be sent is sent by the kernel.
pub fn close_in_order(socket: &impl AsFd) {
    // It fails for no socket of ours; if it did, the peer would see a reset.
    let _ = SockRef::from(socket).set_linger(None);
}

/// `TCP_INQ` of `linux/tcp.h`, which is also what its control message is called.
const TCP_INQ: libc::c_int = 36;

/// Has each read say how much is left.
fn inquire(socket: &Socket) -> io::Result<()> {
    set_number(socket, libc::IPPROTO_TCP, TCP_INQ, 1)
}

/// The options that all sockets have in common.
pub(super) fn marked(family: Family, mark: Mark) -> Result<Socket, SocketError> {
    let socket =
        Socket::new(family.into(), Type::STREAM.nonblocking(), Some(Protocol::TCP)).map_err(os("socket"))?;
    socket.set_mark(mark.own()).map_err(privileged("SO_MARK"))?;
    if family == Family::V6 {
        socket.set_only_v6(true).map_err(os("IPV6_V6ONLY"))?;
    }
    socket.set_linger(Some(Duration::ZERO)).map_err(os("SO_LINGER"))?;
    // Whoever wrote has decided on the size of segments; Nagle's delay on top of it would be ours.
    socket.set_tcp_nodelay(true).map_err(os("TCP_NODELAY"))?;
    // Urgent bytes stay at their place in the stream; otherwise read() would leave them out.
    socket.set_out_of_band_inline(true).map_err(os("SO_OOBINLINE"))?;
    // Else it would take another read to know that there is no more to read.
    inquire(&socket).map_err(os("TCP_INQ"))?;
    Ok(socket)
}

fn bind_and_listen(socket: &Socket, family: Family) -> Result<(), SocketError> {
    // The datapath has a program run for what arrives, which the kernel does for groups of sockets, be they of one.
    socket.set_reuse_port(true).map_err(os("SO_REUSEPORT"))?;
    socket.bind(&SocketAddr::new(family.loopback(), 0).into()).map_err(os("bind"))?;
    // For what it accepts: those connections hold the ports of original destinations, and without the option no daemon
    // of this host could be started on one of them. Set only now, so that the port just bound is nobody else's.
    socket.set_reuse_address(true).map_err(os("SO_REUSEADDR"))?;
    socket.listen(BACKLOG).map_err(os("listen"))
}

#[cfg(test)]
mod tests;
