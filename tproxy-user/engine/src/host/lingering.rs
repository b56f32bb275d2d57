//! TCP sockets of ours that outlive their connection.
//!
//! A socket in TIME_WAIT, or an orphan in FIN_WAIT, whose local address is foreign breaks plain forwarding:
//! early demux attaches it to passing packets, and `ip_forward()` drops a packet that has a socket.

use std::{collections::BTreeSet, io, net::IpAddr};

use netlink_packet_core::{DefaultNla, Emitable, NetlinkSerializable};
use netlink_packet_sock_diag::{
    IPPROTO_TCP, SOCK_DIAG_BY_FAMILY, SockDiagDestroy, SockDiagMessage,
    constants::{AF_INET, AF_INET6},
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use rustix::io::Errno;

use super::{HostError, local_table::LocalTable, netlink::Netlink};
use crate::mark::Mark;

/// Destroys every TCP socket of this namespace that bears the own mark of `mark` and has a foreign local
/// address, one that is not in `local`. Returns how many there were.
///
/// A socket that still has a process is aborted (its peer gets a reset), so a live instance calls this once
/// it has drained.
///
/// # Errors
/// [`HostError::CannotDestroy`] where the kernel cannot; it has then tried all of them.
pub fn destroy(mark: Mark, local: &LocalTable) -> Result<usize, HostError> {
    let Destroyed { destroyed, mut refused } = destroy_those(mark, |socket| is_foreign(socket, local))?;
    let left = refused.len();
    match refused.pop() {
        Some(source) => Err(HostError::CannotDestroy { left, source }),
        None => Ok(destroyed),
    }
}

/// Aborts every TCP socket of this namespace that bears the own mark of `mark` and has one of these local addresses: who has
/// it is told by `ECONNABORTED`, and its peer by a reset, as far as there is a way from an address that is gone. Returns
/// how many there were.
///
/// # Errors
/// [`HostError::CannotAbort`] where the kernel cannot; it has then tried all of them.
pub fn abort(mark: Mark, addresses: &BTreeSet<IpAddr>) -> Result<usize, HostError> {
    let has_one =
        |socket: &InetResponseHeader| addresses.contains(&socket.socket_id.source_address.to_canonical());
    let Destroyed { destroyed, mut refused } = destroy_those(mark, has_one)?;
    let left = refused.len();
    match refused.pop() {
        Some(source) => Err(HostError::CannotAbort { left, source }),
        None => Ok(destroyed),
    }
}

/// What became of sockets that were to be destroyed.
struct Destroyed {
    destroyed: usize,
    refused: Vec<io::Error>,
}

fn destroy_those(mark: Mark, is_meant: impl Fn(&InetResponseHeader) -> bool) -> Result<Destroyed, HostError> {
    let netlink = Netlink::open(NETLINK_SOCK_DIAG).map_err(cannot_list)?;
    let mut destroyed = 0;
    let mut refused = Vec::new();
    for (family, header) in ours(&netlink, mark)?.into_iter().filter(|(_, socket)| is_meant(socket)) {
        let socket = request(family, header.socket_id);
        let request = SockDiagDestroy::new(SockDiagMessage::InetRequest(socket));
        match netlink.request(request, 0) {
            Ok(()) => destroyed += 1,
            // Gone meanwhile, or its 4-tuple belongs to another socket by now.
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::STALE)) => {}
            Err(error) => refused.push(error),
        }
    }
    Ok(Destroyed { destroyed, refused })
}

/// Whether the kernel can destroy sockets: it is asked to destroy one that does not exist.
///
/// # Errors
/// [`HostError::NoSockDiag`] where it knows of no sockets at all, and [`HostError::Netlink`] when it gives no answer.
pub fn can_destroy() -> Result<bool, HostError> {
    // It answers the same to who asks for a socket that does not exist.
    ours(&Netlink::open(NETLINK_SOCK_DIAG).map_err(cannot_list)?, Mark::DEFAULT)?;
    let nobody = SockDiagMessage::InetRequest(request(AF_INET, SocketId::new_v4()));
    match Netlink::open(NETLINK_SOCK_DIAG)
        .and_then(|netlink| netlink.request(SockDiagDestroy::new(nobody), 0))
    {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => Ok(false),
        // No socket is bound to port 0.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(true),
        Err(source) => {
            Err(HostError::Netlink { action: "try whether sockets can be destroyed".into(), source })
        }
        Ok(()) => Ok(true),
    }
}

/// How many sockets with the own mark are not done: a handshake is under way, nobody has accepted the
/// connection yet, or data or a FIN wait to be acknowledged.
///
/// # Errors
/// [`HostError::Netlink`].
pub fn unfinished(mark: Mark, local: &LocalTable) -> Result<usize, HostError> {
    let netlink = Netlink::open(NETLINK_SOCK_DIAG).map_err(cannot_list)?;
    let is_unfinished = |socket: &InetResponseHeader| match socket.state {
        TCP_SYN_RECV => true,
        // A socket without an inode belongs to no process: not yet, or no longer.
        TCP_ESTABLISHED | TCP_CLOSE_WAIT => socket.inode == 0,
        // The kernel counts an unacknowledged FIN as a byte of the send queue. With an address of this host it is
        // acknowledged without us.
        _ => socket.send_queue > 0 && is_foreign(socket, local),
    };
    Ok(ours(&netlink, mark)?.iter().filter(|(_, socket)| is_unfinished(socket)).count())
}

// net/tcp_states.h
const TCP_ESTABLISHED: u8 = 1;
const TCP_SYN_RECV: u8 = 3;
const TCP_CLOSE_WAIT: u8 = 8;

fn cannot_list(source: io::Error) -> HostError {
    // sock_diag_rcv_msg() where nobody has registered for TCP.
    match source.kind() {
        io::ErrorKind::NotFound => HostError::NoSockDiag,
        _ => HostError::Netlink { action: "list the TCP sockets".into(), source },
    }
}

/// Whether a socket's local address is not the host's.
fn is_foreign(socket: &InetResponseHeader, local: &LocalTable) -> bool {
    let addr = socket.socket_id.source_address.to_canonical();
    !addr.is_loopback() && !local.contains(addr)
}

/// Sockets with the own mark.
fn ours(netlink: &Netlink, mark: Mark) -> Result<Vec<(u8, InetResponseHeader)>, HostError> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        netlink
            .dump(OwnSockets { family, mark, states: connected() }, |answer: SockDiagMessage| {
                if let SockDiagMessage::InetResponse(socket) = answer {
                    found.push((family, socket.header));
                }
            })
            .map_err(cannot_list)?;
    }
    Ok(found)
}

/// Whether some process of this namespace, in whichever other namespaces it may be, listens with the own mark of `mark`: its
/// instance lives.
///
/// # Errors
/// [`HostError::Netlink`].
pub fn listens(mark: Mark) -> Result<bool, HostError> {
    let netlink = Netlink::open(NETLINK_SOCK_DIAG).map_err(cannot_list)?;
    let mut found = false;
    for family in [AF_INET, AF_INET6] {
        let selection = OwnSockets { family, mark, states: StateFlags::LISTEN };
        netlink
            .dump(selection, |answer: SockDiagMessage| {
                found |= matches!(answer, SockDiagMessage::InetResponse(_));
            })
            .map_err(cannot_list)?;
    }
    Ok(found)
}

/// All but listeners: orphans in FIN_WAIT2 and TIME_WAIT count by their substate, request sockets as SYN_RECV.
fn connected() -> StateFlags {
    StateFlags::all() - StateFlags::LISTEN - StateFlags::CLOSE
}

fn request(family: u8, socket_id: SocketId) -> InetRequest {
    InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: connected(),
        socket_id,
    }
}

/// A dump of the sockets that bear the own mark. The kernel compares: it knows the mark of TIME_WAIT and
/// request sockets too (Linux 5.14), and a busy host need not copy all its sockets.
#[derive(Debug, Clone)]
struct OwnSockets {
    family: u8,
    mark: Mark,
    states: StateFlags,
}

// linux/inet_diag.h
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_BC_MARK_COND: u8 = 10;

impl OwnSockets {
    fn socket(&self) -> InetRequest {
        let anybody = if self.family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
        InetRequest { states: self.states.clone(), ..request(self.family, anybody) }
    }

    /// One `inet_diag_bc_op` with its `inet_diag_markcond`: 12 bytes further on to accept, 4 more (beyond
    /// the end) to reject.
    fn filter(&self) -> DefaultNla {
        let (accept, reject) = (12u8, 16u16);
        let mut code = vec![INET_DIAG_BC_MARK_COND, accept];
        code.extend(reject.to_ne_bytes());
        code.extend(self.mark.own().to_ne_bytes());
        code.extend(self.mark.mask().to_ne_bytes());
        DefaultNla::new(INET_DIAG_REQ_BYTECODE, code)
    }
}

impl NetlinkSerializable for OwnSockets {
    fn message_type(&self) -> u16 {
        SOCK_DIAG_BY_FAMILY
    }

    fn buffer_len(&self) -> usize {
        self.socket().buffer_len() + self.filter().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (socket, filter) = buffer.split_at_mut(self.socket().buffer_len());
        self.socket().emit(socket);
        self.filter().emit(filter);
    }
}
