//! Datagrams that arrived before a session's socket was connected wait in the listener: when they have been read.

use std::collections::VecDeque;

use super::super::table::SessionId;

/// A datagram in a receive buffer takes at least this of it (`SKB_TRUESIZE`, whose bookkeeping alone is more).
const LEAST: usize = 512;

/// What is in a listener, as far as anybody can tell.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// What its receive buffer can hold, in bytes.
    pub(super) room: u64,
    /// Bytes of that buffer that were read at least, ever.
    read: u64,
    /// Sessions whose own sockets are not read yet, in the order of their places.
    waiting: VecDeque<(SessionId, Watermark)>,
}

/// How far a listener has to be read until nothing is in it that was there when a session's socket was connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Watermark(u64);

impl Queue {
    pub(super) fn has_read(&mut self, bytes: usize) {
        self.read += bytes.max(LEAST) as u64;
    }

    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// A session waits until what is there now has been read.
    pub(super) fn wait(&mut self, id: SessionId) -> Watermark {
        let place = Watermark(self.read + self.room);
        self.waiting.push_back((id, place));
        place
    }

    /// The next session of which nothing is there any more.
    pub(super) fn next_read(&mut self, is_empty: bool) -> Option<(SessionId, Watermark)> {
        let read = Watermark(self.read);
        let (_, place) = self.waiting.front()?;
        if is_empty || *place <= read { self.waiting.pop_front() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_waits_until_as_much_was_read_as_there_could_be() {
        let mut queue = Queue { room: 3000, ..Queue::default() };
        let ids = [7, 8].map(SessionId::new);
        let first = queue.wait(ids[0]);
        queue.has_read(1);
        let second = queue.wait(ids[1]);
        assert_eq!(queue.next_read(false), None);
        for _ in 0..5 {
            queue.has_read(1);
        }
        assert_eq!(queue.next_read(false), Some((ids[0], first)));
        assert_eq!(queue.next_read(false), None, "a datagram is yet to be read");
        assert!(queue.is_waited_for());
        assert_eq!(queue.next_read(true), Some((ids[1], second)));
        assert!(!queue.is_waited_for());
    }
}
