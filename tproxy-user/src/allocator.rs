//! Where the process has its memory from.

/// The runtime keeps a connection's state in pieces that are aligned to 128 bytes, of which glibc wastes a third.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of `mimalloc.h`: for how many milliseconds freed pages are kept, in case they are wanted again.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// Its default.
const KEEP: std::ffi::c_long = 1000;

/// The allocator asks for huge pages, and has a heap for each thread: rounded up, they are a third of what idle connections
/// take.
///
/// What a start frees is to go at once: the allocator gives pages back only while it is busy, so that an instance at rest
/// would keep them. The types of the kernel alone, which aya reads whether it needs them or not, are 20 MB.
pub(crate) fn begin_small() {
    // It fails for no process; if it did, there would be more memory in use.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // SAFETY: it writes a number of the allocator's own; no thread but this one runs yet.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, 0) };
}

/// From now on pages are kept for a while, which is faster.
pub(crate) fn settle() {
    // SAFETY: the first frees pages of the heap that nothing is allocated in, the second writes an aligned word of the
    // allocator's own, which other threads may read at the same time, old or new.
    unsafe {
        libmimalloc_sys::mi_collect(true);
        libmimalloc_sys::mi_option_set(PURGE_DELAY, KEEP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_one_that_is_meant() {
        // SAFETY: it reads a number of the allocator's own.
        let default = unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(default, KEEP, "mi_option_purge_delay has another number in this version");
    }
}
