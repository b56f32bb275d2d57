//! The buffers of one worker.

use std::cell::RefCell;

use super::conduit::Conduits;

/// Bytes moved by one read and one write.
pub(super) const CHUNK: usize = 64 * 1024;

/// Buffers kept for later use; what a burst of stalled connections needed beyond it is given back
/// to the system.
const KEPT: usize = 64;

/// Buffers that are not in use. Last in, first out: as long as nothing stalls, one buffer, warm in
/// the cache, serves all connections of the worker.
#[derive(Default)]
pub(super) struct Buffers {
    free: RefCell<Vec<Box<[u8]>>>,
    pub(super) conduits: Conduits,
}

impl Buffers {
    /// A buffer of [`CHUNK`] bytes, with whatever was in it.
    pub(super) fn take(&self) -> Box<[u8]> {
        self.free.borrow_mut().pop().unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice())
    }

    pub(super) fn give_back(&self, buffer: Box<[u8]>) {
        let mut free = self.free.borrow_mut();
        if free.len() < KEPT {
            free.push(buffer);
        }
    }
}

#[cfg(test)]
impl Buffers {
    /// Buffers that lie unused.
    pub(super) fn free(&self) -> usize {
        self.free.borrow().len()
    }
}
