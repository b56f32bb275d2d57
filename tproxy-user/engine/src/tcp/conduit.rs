//! Moving bytes without touching them: from a socket into a pipe of the kernel's and out of it into another, by splice(2).
//! For much at once it takes a quarter of the CPU time of reading and writing; for little, the two more calls cost more.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// Bytes that a conduit holds at most: more makes it hardly cheaper.
const CAPACITY: usize = 256 * 1024;

/// Conduits of a worker; beyond them bytes are copied. Each takes two descriptors.
const MOST: usize = 64;

/// A pipe of the kernel's, with what was put into it.
pub(super) struct Conduit {
    entrance: OwnedFd,
    exit: OwnedFd,
    holds: usize,
}

impl Conduit {
    fn new() -> io::Result<Self> {
        let (exit, entrance) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        fcntl_setpipe_size(&entrance, CAPACITY)?;
        Ok(Self { entrance, exit, holds: 0 })
    }

    /// Takes bytes from a socket, into an empty conduit. None and `WouldBlock` say little: so does an urgent byte that is
    /// next (`tcp_splice_data_recv`).
    pub(super) fn fill(&mut self, source: &impl AsFd) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        self.holds = splice(source, None, &self.entrance, None, CAPACITY, flags)?;
        Ok(self.holds)
    }

    /// Gives bytes to a socket.
    pub(super) fn drain(&mut self, sink: &impl AsFd) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let length = splice(&self.exit, None, sink, None, self.holds, flags)?;
        self.holds -= length;
        if length == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(length) }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.holds == 0
    }
}

/// The conduits of one worker that are not in use.
#[derive(Default)]
pub(super) struct Conduits(RefCell<Pool>);

#[derive(Default)]
struct Pool {
    free: Vec<Conduit>,
    lent: usize,
}

impl Conduits {
    /// A conduit, unless there are too many, or no descriptors for it.
    pub(super) fn take(&self) -> Option<Conduit> {
        let mut pool = self.0.borrow_mut();
        let conduit = pool.free.pop().or_else(|| (pool.lent < MOST).then(Conduit::new)?.ok())?;
        pool.lent += 1;
        Some(conduit)
    }

    /// One that still holds something is of no more use, and is closed.
    pub(super) fn give_back(&self, conduit: Conduit) {
        let mut pool = self.0.borrow_mut();
        pool.lent -= 1;
        if conduit.is_empty() {
            pool.free.push(conduit);
        }
    }
}
