//! Which socket, if any, a packet belongs to.

use core::ptr::{self, NonNull};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple},
    helpers::{
        bpf_map_lookup_elem, bpf_probe_read_kernel, bpf_sk_assign, bpf_sk_fullsock, bpf_sk_lookup_udp,
        bpf_sk_release, bpf_skc_lookup_tcp,
    },
    programs::TcContext,
};
use tproxy_common::{
    abi::{Family, listener_index},
    addr::Addr,
    flow::{Protocol, Tuple},
    packet::{Kind, Packet},
};

use crate::{maps, packet::AF_INET, settings, translation};

/// Of UDP: connected.
const TCP_ESTABLISHED: u32 = 1;
const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;
const TCP_NEW_SYN_RECV: u32 = 12;

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;

/// What the kernel's socket table says of a TCP flow.
pub(crate) enum Owner {
    /// No socket of ours.
    Nobody,
    /// A connection of ours, or one that is being set up.
    Connection(Socket),
    /// A connection of ours in TIME_WAIT: its packets are ours, a SYN is a new flow.
    TimeWait,
    /// No socket yet, but our listener was chosen for it: the flow was decided, and waits for the last ACK of a
    /// handshake that the kernel keeps in a SYN cookie.
    Decision(Socket),
}

/// A reference to a socket, released when dropped, as the verifier demands on every path.
pub(crate) struct Socket(NonNull<bpf_sock>);

impl Drop for Socket {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the pointer came from an acquiring helper and is released exactly once.
        unsafe { bpf_sk_release(self.0.as_ptr().cast()) };
    }
}

impl Socket {
    /// The socket that would receive a packet with this tuple. Of listeners only one of ours to which the flow was given: the
    /// kernel runs our own `sk_lookup` program for lookups by tc, too (`__inet_lookup_listener`, `__udp4_lib_lookup`),
    /// which is told of this one, and asks no rules.
    #[inline(always)]
    fn receiving(ctx: &TcContext, protocol: Protocol, tuple: &Tuple) -> Option<Self> {
        /// `bpf_sock_tuple.ipv4`
        #[repr(C)]
        struct V4 {
            src: [u8; 4],
            dst: [u8; 4],
            ports: [[u8; 2]; 2],
        }
        let lookup = |key: *const bpf_sock_tuple, len: usize| {
            let (ctx, key, len, netns) =
                (ctx.as_ptr(), key.cast_mut(), len as u32, BPF_F_CURRENT_NETNS as u64);
            // SAFETY: `key` points to `len` initialised bytes laid out as `bpf_sock_tuple`.
            unsafe {
                match protocol {
                    Protocol::Tcp => bpf_skc_lookup_tcp(ctx, key, len, netns, 0),
                    Protocol::Udp => bpf_sk_lookup_udp(ctx, key, len, netns, 0),
                }
            }
        };
        let finding = maps::FINDING.get_ptr_mut(0);
        let note = |ports| {
            if let Some(finding) = finding {
                // SAFETY: the slot is this CPU's own; an aligned word.
                unsafe { (&raw mut (*finding).sought).write_volatile(ports) };
            }
        };
        note(tuple.ports());
        let found = if tuple.dst.is_v4() {
            let key = V4 { src: tuple.src.v4(), dst: tuple.dst.v4(), ports: [tuple.sport, tuple.dport] };
            lookup(ptr::from_ref(&key).cast(), size_of::<V4>())
        } else {
            lookup(ptr::from_ref(tuple).cast(), size_of::<Tuple>())
        };
        note(0);
        NonNull::new(found).map(Self)
    }

    /// A worker's listener, if it is alive: the kernel clears a slot of a sockmap when its socket is closed.
    #[inline(always)]
    pub(crate) fn listener(worker: u32, protocol: Protocol, family: Family) -> Option<Self> {
        let index = listener_index(worker, protocol, family);
        // SAFETY: a sockmap lookup in tc returns null or an acquired socket.
        let found = unsafe {
            bpf_map_lookup_elem(
                ptr::from_ref(&maps::LISTENERS).cast_mut().cast(),
                ptr::from_ref(&index).cast(),
            )
        };
        NonNull::new(found.cast()).map(Self)
    }

    /// As the kernel shows it, for as long as this is.
    #[inline(always)]
    pub(crate) const fn as_ptr(&self) -> *mut bpf_sock {
        self.0.as_ptr()
    }

    /// Makes this socket the packet's receiver. Full sockets only.
    #[inline(always)]
    pub(crate) fn assign(&self, ctx: &TcContext) -> bool {
        // SAFETY: both pointers are valid; the helper takes its own reference.
        unsafe { bpf_sk_assign(ctx.as_ptr(), self.0.as_ptr().cast(), 0) == 0 }
    }

    /// TCP state.
    #[inline(always)]
    fn state(&self) -> u32 {
        // SAFETY: a non-null `sock_common`; the access is checked by the verifier.
        unsafe { (*self.0.as_ptr()).state }
    }

    /// `SO_MARK`; `None` for TIME_WAIT and request sockets, which show none.
    #[inline(always)]
    fn mark(&self) -> Option<u32> {
        // SAFETY: the helper returns null or the same socket as a full one.
        unsafe {
            let full = bpf_sk_fullsock(self.0.as_ptr());
            if full.is_null() { None } else { Some((*full).mark) }
        }
    }

    /// Whether this is a UDP socket that is connected to a datagram's sender, or one that is not connected and bound to the
    /// very address the datagram is for. Others are bound to an address of the host's, which needs no steering; or the
    /// look-up found them when they were only bound, and they are connected to somebody else by now.
    #[inline(always)]
    fn is_for(&self, tuple: &Tuple) -> bool {
        let socket = self.0.as_ptr();
        // SAFETY: a UDP socket is a full one; the accesses are checked by the verifier.
        unsafe {
            if (*socket).state == TCP_ESTABLISHED {
                (&raw const (*socket).dst_port).read_volatile().to_ne_bytes() == tuple.sport
                    && is_address(&raw const (*socket).dst_ip4, &raw const (*socket).dst_ip6, &tuple.src)
            } else {
                is_address(&raw const (*socket).src_ip4, &raw const (*socket).src_ip6, &tuple.dst)
            }
        }
    }

    /// Whether this is a full socket, the only kind that `assign` takes.
    #[inline(always)]
    pub(crate) fn is_full(&self) -> bool {
        !matches!(self.state(), TCP_TIME_WAIT | TCP_NEW_SYN_RECV)
    }
}

/// Whether an address of a socket is `addr`. Read word by word and volatile: the verifier takes fields of a socket by
/// themselves, and at constant offsets.
///
/// # Safety
/// The pointers are to fields of one socket that is referred to.
#[inline(always)]
unsafe fn is_address(v4: *const u32, v6: *const [u32; 4], addr: &Addr) -> bool {
    // SAFETY: as demanded.
    unsafe {
        if addr.is_v4() {
            return v4.read_volatile().to_ne_bytes() == addr.v4();
        }
        let word = |index| v6.cast::<u32>().add(index).read_volatile();
        words(addr) == [word(0), word(1), word(2), word(3)]
    }
}

/// An address as the kernel shows one of a socket.
#[inline(always)]
fn words(addr: &Addr) -> [u32; 4] {
    let Addr([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]) = *addr;
    let word = u32::from_ne_bytes;
    [word([a, b, c, d]), word([e, f, g, h]), word([i, j, k, l]), word([m, n, o, p])]
}

/// The worker that gets a connection: that of the CPU this runs on, whose caches have the packet, unless it was given too
/// many more than another. Where all packets come in on one CPU, the others would have nothing to do.
#[inline(always)]
pub(crate) fn worker_of_connection() -> u32 {
    /// More than differ by chance where packets are spread, less than would be felt where they are not.
    const TOO_MANY: i32 = 16;
    // SAFETY: no arguments, no failure.
    let cpu = unsafe { aya_ebpf::helpers::bpf_get_smp_processor_id() } as u32;
    let workers = settings::workers();
    let local = cpu % workers;
    if workers == 1 {
        return local;
    }
    let given = maps::given(local);
    // The same one until this worker is given another: by then it has caught up.
    let other = (local + 1 + given % (workers - 1)) % workers;
    let is_too_many = given.wrapping_sub(maps::given(other)).cast_signed() > TOO_MANY;
    if is_too_many { other } else { local }
}

/// Whether there are workers who receive such packets: their listeners go all at once.
#[inline(always)]
pub(crate) fn is_served(parsed: &Packet) -> bool {
    Socket::listener(0, parsed.protocol, family(&parsed.tuple.dst)).is_some()
}

/// The worker that has all UDP flows of the client that sent a datagram.
#[inline(always)]
pub(crate) fn worker_of_client(tuple: &Tuple) -> u32 {
    tuple.source_hash() % settings::workers()
}

/// Family of an address.
#[inline(always)]
pub(crate) fn family(addr: &Addr) -> Family {
    if addr.is_v4() { Family::V4 } else { Family::V6 }
}

/// Whether `addr` is one of the host's own.
#[inline(never)]
pub(crate) fn is_host_address(addr: &Addr) -> bool {
    maps::HOST_ADDRESSES.get(&aya_ebpf::btf_maps::lpm_trie::Key::new(128, *addr)).is_some()
}

/// What the kernel's socket table says of a datagram.
pub(crate) enum Receiver {
    /// This socket of ours.
    Ours(Socket),
    /// A socket of the host's.
    Others,
    /// None.
    Nobody,
}

/// The socket that a datagram with this tuple belongs to. Not a listener of ours: whom those receive is remembered.
#[inline(always)]
pub(crate) fn datagram_owner(ctx: &TcContext, tuple: &Tuple) -> Receiver {
    let Some(socket) = Socket::receiving(ctx, Protocol::Udp, tuple) else { return Receiver::Nobody };
    let is_own = socket.mark().is_some_and(settings::is_own);
    match is_own {
        true if socket.is_for(tuple) => Receiver::Ours(socket),
        true => Receiver::Nobody,
        false => Receiver::Others,
    }
}

/// The same, for a datagram as it comes in.
#[inline(always)]
pub(crate) fn owner_of_incoming_datagram(ctx: &TcContext, tuple: &Tuple) -> Receiver {
    match datagram_owner(ctx, tuple) {
        Receiver::Ours(socket) => Receiver::Ours(socket),
        found => match translation::of(Protocol::Udp, tuple) {
            Some(known) => datagram_owner(ctx, &known),
            None => found,
        },
    }
}

/// The socket that sends a packet, if it is a full one. It is valid while the program runs.
#[inline(always)]
pub(crate) fn sender(ctx: &TcContext) -> Option<NonNull<bpf_sock>> {
    // SAFETY: the context is a valid skb; its socket is null or valid while the program runs, and so is the full socket
    // that the helper makes of it.
    unsafe {
        let sender = (&raw const (*ctx.skb.skb).__bindgen_anon_2.sk).read_volatile();
        if sender.is_null() { None } else { NonNull::new(bpf_sk_fullsock(sender)) }
    }
}

/// The sender if its tuple is that of what it sends: raw and packet sockets send what they like.
#[inline(always)]
pub(crate) fn sending_transport(ctx: &TcContext) -> Option<NonNull<bpf_sock>> {
    const TCP: u32 = Protocol::Tcp.number() as u32;
    const UDP: u32 = Protocol::Udp.number() as u32;
    sender(ctx).filter(|sender| {
        // SAFETY: `sender` vouches for it; the accesses are checked by the verifier.
        let (kind, protocol) = unsafe { ((*sender.as_ptr()).type_, (*sender.as_ptr()).protocol) };
        matches!((kind, protocol), (SOCK_STREAM, TCP) | (SOCK_DGRAM, UDP))
    })
}

/// Whether NAT has changed what a process of this host sends: its socket is known by another tuple.
#[inline(never)]
pub(crate) fn is_translated(ctx: &TcContext, tuple: &Tuple) -> bool {
    let Some(sender) = sending_transport(ctx).map(NonNull::as_ptr) else { return false };
    // SAFETY: `sender` vouches for it; the accesses are checked by the verifier.
    unsafe {
        if (*sender).src_port != u32::from(u16::from_be_bytes(tuple.sport)) {
            return true;
        }
        let (src4, src6) = (&raw const (*sender).src_ip4, &raw const (*sender).src_ip6);
        if !is_address(src4, src6, &tuple.src) && !is_address(src4, src6, &tuple.src.unspecified()) {
            return true;
        }
        // One that is not connected knows no destination.
        let dport = (&raw const (*sender).dst_port).read_volatile().to_ne_bytes();
        if dport == [0, 0] {
            return has_translated_connection(ctx);
        }
        let (dst4, dst6) = (&raw const (*sender).dst_ip4, &raw const (*sender).dst_ip6);
        dport != tuple.dport || !is_address(dst4, dst6, &tuple.dst)
    }
}

/// Whether NAT does something with the connection of a packet, as the kernel itself notes it there.
#[inline(always)]
fn has_translated_connection(ctx: &TcContext) -> bool {
    /// In its lowest bits, the word has the direction.
    const POINTER: usize = !7;
    /// `IPS_SRC_NAT | IPS_DST_NAT`
    const TRANSLATED: u64 = 1 << 4 | 1 << 5;
    let Some((of_packet, status)) = settings::connection_offsets() else { return false };
    let read = |address: usize| {
        // SAFETY: what cannot be read there is an error.
        unsafe { bpf_probe_read_kernel(address as *const u64) }.unwrap_or(0)
    };
    let connection = read(ctx.as_ptr() as usize + of_packet) as usize & POINTER;
    connection != 0 && read(connection + status) & TRANSLATED != 0
}

/// Whether a UDP socket that is not connected sends this packet.
#[inline(always)]
pub(crate) fn sender_is_unconnected(ctx: &TcContext) -> bool {
    let Some(sender) = sender(ctx) else { return false };
    // SAFETY: `sender` vouches for it; the accesses are checked by the verifier.
    unsafe { (*sender.as_ptr()).type_ == SOCK_DGRAM && (*sender.as_ptr()).state != TCP_ESTABLISHED }
}

/// Whether a packet that leaves is one of the socket that it comes from. A tunnel device wraps what a socket sent in a packet of
/// its own and leaves the socket to it (`iptunnel_xmit`, `wg_socket_send_skb_to_peer`), if there was one. Where NAT has
/// given the packet another source port, a connected socket is known by its peer.
#[inline(always)]
pub(crate) fn is_of_its_sender(ctx: &TcContext, parsed: &Packet) -> bool {
    const AF_INET6: u32 = 10;
    const SOCK_RAW: u32 = 3;
    const IPPROTO_RAW: u32 = 255;
    let protocol = u32::from(parsed.protocol.number());
    let Some(full) = sender(ctx).map(NonNull::as_ptr) else { return false };
    // SAFETY: as in `sender_is_unconnected`.
    unsafe {
        // A packet socket sends what it likes; and that of a test run has no type.
        if (*full).family != AF_INET && (*full).family != AF_INET6 || (*full).type_ == 0 {
            return true;
        }
        if (*full).type_ == SOCK_RAW && (*full).protocol == IPPROTO_RAW {
            return true;
        }
        if (*full).protocol != protocol && parsed.kind != Kind::Hidden {
            return false;
        }
        if parsed.protocol == Protocol::Tcp || (*full).type_ == SOCK_RAW {
            return true;
        }
        let (own, peer) = ((*full).src_port, (&raw const (*full).dst_port).read_volatile());
        own == u32::from(u16::from_be_bytes(parsed.tuple.sport)) || peer.to_ne_bytes() == parsed.tuple.dport
    }
}

/// Who owns the TCP flow that a packet belongs to which comes in with this tuple. That it was decided is known by this one, but
/// the socket by the one that NAT makes of it.
#[inline(always)]
pub(crate) fn owner_of_incoming(ctx: &TcContext, tuple: &Tuple) -> Owner {
    match owner(ctx, tuple) {
        found @ (Owner::Nobody | Owner::Decision(_)) => match translation::of(Protocol::Tcp, tuple) {
            Some(known) => owner(ctx, &known),
            None => found,
        },
        owner => owner,
    }
}

/// The interface that the sending socket is bound to; 0 is none.
#[inline(always)]
pub(crate) fn device_of_sender(ctx: &TcContext) -> u32 {
    // SAFETY: `sender` vouches for it; the access is checked by the verifier.
    sender(ctx).map_or(0, |sender| unsafe { (&raw const (*sender.as_ptr()).bound_dev_if).read_volatile() })
}

/// Who owns the TCP flow that a packet with this tuple belongs to.
///
/// `bpf_skc_lookup_tcp` also finds listeners on wildcard addresses and other people's sockets: only the own mark
/// makes a socket ours, and where no mark can be seen, a local address that is not the host's.
#[inline(always)]
pub(crate) fn owner(ctx: &TcContext, tuple: &Tuple) -> Owner {
    let Some(socket) = Socket::receiving(ctx, Protocol::Tcp, tuple) else { return Owner::Nobody };
    let state = socket.state();
    if state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV {
        if is_host_address(&tuple.dst) {
            return Owner::Nobody;
        }
        return if state == TCP_TIME_WAIT { Owner::TimeWait } else { Owner::Connection(socket) };
    }
    match socket.mark() {
        Some(mark) if settings::is_own(mark) => {
            if state == TCP_LISTEN {
                Owner::Decision(socket)
            } else {
                Owner::Connection(socket)
            }
        }
        _ => Owner::Nobody,
    }
}
