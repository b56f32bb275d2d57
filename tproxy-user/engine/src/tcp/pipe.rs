//! One direction of a connection.

use std::{
    io,
    net::Shutdown,
    ops::Range,
    task::{Context, Poll, ready},
};

use rustix::net::{SendFlags, send};
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use super::{
    buffers::{Buffers, CHUNK},
    conduit::Conduit,
};
use crate::socket::{self, Received, Rest};

/// Moves bytes from one socket to another, in order, and then the end of the data.
#[derive(Default)]
pub(super) struct Pipe {
    /// Bytes taken from the one socket.
    pub(super) read: u64,
    /// Bytes given to the other one; at most [`Remainder`] behind `read`.
    pub(super) written: u64,
    remainder: Option<Remainder>,
    phase: Phase,
    /// Reads in a row that brought all they could.
    full_reads: u8,
}

/// What was read and not yet taken by the other side. Nothing more is read until it is.
enum Remainder {
    Copied { buffer: Box<[u8]>, unwritten: Range<usize> },
    Spliced(Conduit),
}

/// After so many full reads in a row it is worth while to splice.
const MANY: u8 = 2;

/// Reads of less than this show that it no longer is.
const LITTLE: usize = CHUNK / 4;

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// The source has no more to send; the remainder and then the end are still to be passed on.
    Ended,
    /// The sink was told.
    Closed,
}

/// Which of the two sockets failed, and how.
#[derive(Debug)]
pub(super) enum PipeFailure {
    Source(io::Error),
    Sink(io::Error),
}

impl Pipe {
    /// Moves what can be moved, `chunks` reads at most; ready when there is no more to come. The end is then passed on by
    /// [`Self::close`], or by closing the sink.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        sink: &TcpStream,
        buffers: &Buffers,
        mut chunks: u32,
    ) -> Poll<Result<(), PipeFailure>> {
        loop {
            while self.remainder.is_some() {
                ready!(sink.poll_write_ready(cx)).map_err(PipeFailure::Sink)?;
                self.flush(sink, buffers)?;
            }
            match self.phase {
                Phase::Open if chunks == 0 => {
                    // Others have their turn, and then we go on.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Phase::Open => {
                    ready!(source.poll_read_ready(cx)).map_err(PipeFailure::Source)?;
                    chunks -= 1;
                    self.fill(source, buffers)?;
                    self.flush(sink, buffers)?;
                }
                Phase::Ended | Phase::Closed => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Whether the source is waited for, so that its failure is seen by reading.
    pub(super) fn is_reading(&self) -> bool {
        self.phase == Phase::Open && self.remainder.is_none()
    }

    /// Tells the sink that there is no more to come, once.
    pub(super) fn close(&mut self, sink: &TcpStream) -> io::Result<()> {
        if self.phase == Phase::Ended {
            SockRef::from(sink).shutdown(Shutdown::Write)?;
            self.phase = Phase::Closed;
        }
        Ok(())
    }

    /// The source is dead; what it said before is passed on as far as the sink takes it at once.
    ///
    /// A server that answers and closes without having read all of the request sends data and then a
    /// reset; its client can read the answer, and ours must be able to.
    pub(super) fn last_words(&mut self, source: &TcpStream, sink: &TcpStream, buffers: &Buffers) {
        self.pass_on_what_is_there(source, sink, buffers);
        if self.phase == Phase::Ended {
            // The end that it waits for will not be told.
            socket::push(sink);
        }
    }

    fn pass_on_what_is_there(&mut self, source: &TcpStream, sink: &TcpStream, buffers: &Buffers) {
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
        match self.remainder.take() {
            Some(Remainder::Copied { buffer, .. }) => buffers.give_back(buffer),
            Some(Remainder::Spliced(conduit)) => buffers.conduits.give_back(conduit),
            None => {}
        }
    }

    /// One read; leaves no remainder when there was nothing to read.
    fn fill(&mut self, source: &TcpStream, buffers: &Buffers) -> Result<(), PipeFailure> {
        if self.full_reads >= MANY
            && let Some(conduit) = buffers.conduits.take()
        {
            self.splice(source, conduit, buffers)?;
        }
        // What a conduit does not take is looked at more closely.
        if self.remainder.is_none() { self.copy(source, buffers) } else { Ok(()) }
    }

    fn splice(
        &mut self,
        source: &TcpStream,
        mut conduit: Conduit,
        buffers: &Buffers,
    ) -> Result<(), PipeFailure> {
        match conduit.fill(source) {
            Ok(length @ 1..) => {
                self.note(length);
                self.remainder = Some(Remainder::Spliced(conduit));
                return Ok(());
            }
            Err(error) if !is_transient(&error) => {
                buffers.conduits.give_back(conduit);
                return Err(PipeFailure::Source(error));
            }
            _ => {}
        }
        buffers.conduits.give_back(conduit);
        Ok(())
    }

    /// Something was read.
    fn note(&mut self, length: usize) {
        self.read += length as u64;
        if length >= CHUNK {
            self.full_reads = self.full_reads.saturating_add(1);
        } else if length < LITTLE {
            self.full_reads = 0;
        }
    }

    /// Reads what there is into a buffer of the worker, as far as it has room; leaves no remainder when that was nothing.
    ///
    /// When that was all, the runtime is told at once that the source is no longer readable, instead of by another read.
    fn copy(&mut self, source: &TcpStream, buffers: &Buffers) -> Result<(), PipeFailure> {
        let mut buffer = buffers.take();
        let (mut length, mut phase) = (0, Phase::Open);
        let result = source.try_io(Interest::READABLE, || {
            while length < buffer.len() {
                let received = socket::receive(source, &mut buffer[length..])?;
                length += received.length;
                match received {
                    Received { length: 0, .. } => {
                        phase = Phase::Ended;
                        break;
                    }
                    Received { rest: Rest::Nothing, .. } => return Err(io::ErrorKind::WouldBlock.into()),
                    Received { rest: Rest::Something, .. } => {}
                }
            }
            Ok(())
        });
        self.phase = phase;
        if length > 0 {
            self.note(length);
            self.remainder = Some(Remainder::Copied { buffer, unwritten: 0..length });
        } else {
            buffers.give_back(buffer);
        }
        match result {
            Err(error) if !is_transient(&error) => Err(PipeFailure::Source(error)),
            _ => Ok(()),
        }
    }

    /// One write of the remainder, whose buffer or conduit goes back when nothing is left of it.
    fn flush(&mut self, sink: &TcpStream, buffers: &Buffers) -> Result<(), PipeFailure> {
        let (result, is_done) = match &mut self.remainder {
            None => return Ok(()),
            Some(Remainder::Copied { buffer, unwritten }) => {
                // With the end known, a part of it may wait for that: `shutdown` and `close` send both in one segment.
                let more = if self.phase == Phase::Open { SendFlags::empty() } else { SendFlags::MORE };
                let bytes = &buffer[unwritten.clone()];
                let result =
                    sink.try_io(Interest::WRITABLE, || Ok(send(sink, bytes, SendFlags::NOSIGNAL | more)?));
                unwritten.start += result.as_ref().map_or(0, |length| *length);
                (result, unwritten.start == unwritten.end)
            }
            Some(Remainder::Spliced(conduit)) => {
                let result = sink.try_io(Interest::WRITABLE, || conduit.drain(sink));
                (result, conduit.is_empty())
            }
        };
        match result {
            Ok(length) => self.written += length as u64,
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(PipeFailure::Sink(error)),
        }
        if is_done {
            self.abandon(buffers);
        }
        Ok(())
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
