//! Constants the loader sets before verification, so that the verifier removes what they rule out.

use aya_ebpf::Global;

#[unsafe(no_mangle)]
static STEER_MARK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OWN_MARK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MARK_MASK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static WORKERS: Global<u32> = Global::new(1);
#[unsafe(no_mangle)]
static SK_ASSIGN: Global<u8> = Global::new(0);
#[unsafe(no_mangle)]
static MEMORY_LIFETIME: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static CONNECTION_OF_PACKET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static CONNECTION_STATUS: Global<u32> = Global::new(0);

/// Whether a socket or packet bears the own mark.
#[inline(always)]
pub(crate) fn is_own(mark: u32) -> bool {
    mark & MARK_MASK.load() == OWN_MARK.load()
}

/// Whether a packet bears the steer mark.
#[inline(always)]
pub(crate) fn is_steered(mark: u32) -> bool {
    mark & MARK_MASK.load() == STEER_MARK.load()
}

/// `mark` with our bits replaced by the steer mark.
#[inline(always)]
pub(crate) fn steered(mark: u32) -> u32 {
    (mark & !MARK_MASK.load()) | STEER_MARK.load()
}

/// `mark` with our bits replaced by those of the mask that the steer mark leaves clear.
#[inline(always)]
pub(crate) fn landing(mark: u32) -> u32 {
    (mark & !MARK_MASK.load()) | (MARK_MASK.load() & !STEER_MARK.load())
}

/// `mark` without our bits.
#[inline(always)]
pub(crate) fn unmarked(mark: u32) -> u32 {
    mark & !MARK_MASK.load()
}

/// Number of workers, at least one.
#[inline(always)]
pub(crate) fn workers() -> u32 {
    WORKERS.load().max(1)
}

/// For how long a silent UDP flow is remembered, in nanoseconds.
#[inline(always)]
pub(crate) fn memory_lifetime() -> u64 {
    MEMORY_LIFETIME.load()
}

/// Where the kernel's packet leads to its connection (`sk_buff._nfct`), and where that tells what NAT does with it
/// (`nf_conn.status`), if that is known.
#[inline(always)]
pub(crate) fn connection_offsets() -> Option<(usize, usize)> {
    match CONNECTION_OF_PACKET.load() {
        0 => None,
        of_packet => Some((of_packet as usize, CONNECTION_STATUS.load() as usize)),
    }
}

/// Whether tc assigns sockets itself.
#[inline(always)]
pub(crate) fn sk_assign() -> bool {
    SK_ASSIGN.load() != 0
}
