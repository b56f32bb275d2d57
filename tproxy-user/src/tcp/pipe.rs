//! One direction of a connection.

use std::{
    io,
    net::Shutdown,
    ops::Range,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::net::TcpStream;

use super::buffers::Buffers;

/// Moves bytes from one socket to another, in order, and then the end of the data.
#[derive(Default)]
pub(super) struct Pipe {
    /// Bytes taken from the one socket.
    pub(super) read: u64,
    /// Bytes given to the other one; at most [`Remainder`] behind `read`.
    pub(super) written: u64,
    remainder: Option<Remainder>,
    phase: Phase,
}

/// What was read and not yet taken by the other side. Nothing more is read until it is.
struct Remainder {
    buffer: Box<[u8]>,
    unwritten: Range<usize>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// The source has no more to send; the remainder and then the end are still to be passed on.
    Ended,
    /// The end was passed on.
    Closed,
}

/// Which of the two sockets failed, and how.
#[derive(Debug)]
pub(super) enum Failure {
    Source(io::Error),
    Sink(io::Error),
}

impl Pipe {
    /// Moves what can be moved, `chunks` reads at most; ready when the end was passed on.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        sink: &TcpStream,
        buffers: &Buffers,
        mut chunks: u32,
    ) -> Poll<Result<(), Failure>> {
        loop {
            while self.remainder.is_some() {
                ready!(sink.poll_write_ready(cx)).map_err(Failure::Sink)?;
                self.flush(sink, buffers)?;
            }
            match self.phase {
                Phase::Open if chunks == 0 => {
                    // Others have their turn, and then we go on.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Phase::Open => {
                    ready!(source.poll_read_ready(cx)).map_err(Failure::Source)?;
                    chunks -= 1;
                    self.fill(source, buffers)?;
                    self.flush(sink, buffers)?;
                }
                Phase::Ended => {
                    SockRef::from(sink).shutdown(Shutdown::Write).map_err(Failure::Sink)?;
                    self.phase = Phase::Closed;
                }
                Phase::Closed => return Poll::Ready(Ok(())),
            }
        }
    }

    /// The source is dead; what it said before is passed on as far as the sink takes it at once.
    ///
    /// A server that answers and closes without having read all of the request sends data and then a
    /// reset; its client can read the answer, and ours must be able to.
    pub(super) fn last_words(&mut self, source: &TcpStream, sink: &TcpStream, buffers: &Buffers) {
        loop {
            let before = self.written;
            if self.flush(sink, buffers).is_err() || self.remainder.is_some() || self.phase != Phase::Open {
                return;
            }
            if self.fill(source, buffers).is_err() || self.flush(sink, buffers).is_err() {
                return;
            }
            if self.written == before {
                return;
            }
        }
    }

    /// Gives back a buffer that was in use.
    pub(super) fn abandon(&mut self, buffers: &Buffers) {
        if let Some(remainder) = self.remainder.take() {
            buffers.give_back(remainder.buffer);
        }
    }

    /// One read into a buffer of the worker; leaves no remainder when there was nothing to read.
    ///
    /// A short read says nothing about what is left: a read stops at an urgent byte although more is
    /// there (`tcp_recvmsg`), so it is only `WouldBlock` that ends a burst.
    fn fill(&mut self, source: &TcpStream, buffers: &Buffers) -> Result<(), Failure> {
        let mut buffer = buffers.take();
        let result = source.try_read(&mut buffer);
        match result {
            Ok(length @ 1..) => {
                self.read += length as u64;
                self.remainder = Some(Remainder { buffer, unwritten: 0..length });
                return Ok(());
            }
            Ok(0) => self.phase = Phase::Ended,
            Err(error) if is_transient(&error) => {}
            Err(error) => {
                buffers.give_back(buffer);
                return Err(Failure::Source(error));
            }
        }
        buffers.give_back(buffer);
        Ok(())
    }

    /// One write of the remainder, whose buffer goes back when nothing is left of it.
    fn flush(&mut self, sink: &TcpStream, buffers: &Buffers) -> Result<(), Failure> {
        let Some(Remainder { buffer, unwritten }) = &mut self.remainder else { return Ok(()) };
        match sink.try_write(&buffer[unwritten.clone()]) {
            Ok(length) => {
                unwritten.start += length;
                self.written += length as u64;
            }
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(Failure::Sink(error)),
        }
        if unwritten.start == unwritten.end {
            self.abandon(buffers);
        }
        Ok(())
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
