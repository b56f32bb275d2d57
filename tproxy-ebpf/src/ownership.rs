//! Which socket, if any, a packet belongs to.

use core::ptr::{self, NonNull};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple},
    helpers::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_fullsock, bpf_sk_release, bpf_skc_lookup_tcp},
    programs::TcContext,
};
use tproxy_common::{
    abi::{Family, listener_index},
    addr::Addr,
    flow::{Protocol, Tuple},
};

use crate::{maps, settings};

const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;
const TCP_NEW_SYN_RECV: u32 = 12;

/// What the kernel's socket table says of a flow.
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
    /// The socket that would receive a packet with this tuple, listeners included (which runs our own
    /// `sk_lookup` program: `__inet_lookup_listener` calls it for lookups by tc, too).
    #[inline(always)]
    fn receiving(ctx: &TcContext, tuple: &Tuple) -> Option<Self> {
        /// `bpf_sock_tuple.ipv4`
        #[repr(C)]
        struct V4 {
            src: [u8; 4],
            dst: [u8; 4],
            ports: [[u8; 2]; 2],
        }
        let lookup = |key: *const bpf_sock_tuple, len: usize| {
            // SAFETY: `key` points to `len` initialised bytes laid out as `bpf_sock_tuple`.
            unsafe {
                bpf_skc_lookup_tcp(ctx.as_ptr(), key.cast_mut(), len as u32, BPF_F_CURRENT_NETNS as u64, 0)
            }
        };
        let found = if tuple.dst.is_v4() {
            let key = V4 { src: tuple.src.v4(), dst: tuple.dst.v4(), ports: [tuple.sport, tuple.dport] };
            lookup(ptr::from_ref(&key).cast(), size_of::<V4>())
        } else {
            lookup(ptr::from_ref(tuple).cast(), size_of::<Tuple>())
        };
        NonNull::new(found).map(Self)
    }

    /// A worker's listener, if it is alive: the kernel clears a slot of a sockmap when its socket is closed.
    #[inline(always)]
    pub(crate) fn listener(worker: u32, family: Family) -> Option<Self> {
        let index = listener_index(worker, Protocol::Tcp, family);
        // SAFETY: a sockmap lookup in tc returns null or an acquired socket.
        let found = unsafe {
            bpf_map_lookup_elem(
                ptr::from_ref(&maps::LISTENERS).cast_mut().cast(),
                ptr::from_ref(&index).cast(),
            )
        };
        NonNull::new(found.cast()).map(Self)
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

    /// Whether this is a full socket, the only kind that `assign` takes.
    #[inline(always)]
    pub(crate) fn is_full(&self) -> bool {
        !matches!(self.state(), TCP_TIME_WAIT | TCP_NEW_SYN_RECV)
    }
}

/// The worker that serves the CPU this runs on.
#[inline(always)]
pub(crate) fn this_cpu_worker() -> u32 {
    // SAFETY: no arguments, no failure.
    let cpu = unsafe { aya_ebpf::helpers::bpf_get_smp_processor_id() } as u32;
    cpu % settings::workers()
}

/// Family of an address.
#[inline(always)]
pub(crate) fn family(addr: &Addr) -> Family {
    if addr.is_v4() { Family::V4 } else { Family::V6 }
}

/// Whether `addr` is one of the host's own.
#[inline(always)]
pub(crate) fn is_host_address(addr: &Addr) -> bool {
    maps::HOST_ADDRESSES.get(&aya_ebpf::btf_maps::lpm_trie::Key::new(128, *addr)).is_some()
}

/// Who owns the flow that a packet with this tuple belongs to.
///
/// `bpf_skc_lookup_tcp` also finds listeners on wildcard addresses and other people's sockets: only the own mark
/// makes a socket ours, and where no mark can be seen, a local address that is not the host's.
#[inline(always)]
pub(crate) fn owner(ctx: &TcContext, tuple: &Tuple) -> Owner {
    let Some(socket) = Socket::receiving(ctx, tuple) else { return Owner::Nobody };
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
