//! What one receive call brings, and putting it together again for as few send calls.
//!
//! The kernel hands over several datagrams of one flow as one message where it can (`UDP_GRO`), and takes several of one
//! size in one call (`UDP_SEGMENT`, udp(7)), the last of which may be shorter. Messages of one size are therefore moved
//! together: a copy costs far less than a system call.

use std::{io, net::SocketAddr, os::fd::AsFd};

use crate::socket::{Datagram, Message, Pieces, TrafficClass, receive_messages};

/// Messages received by one call.
const BATCH_SIZE: usize = 32;

/// The longest message that can be received: a datagram or several put together are 65,535 bytes at most.
const MESSAGE: usize = 1 << 16;

/// The longest that can be sent: `ip_append_data` takes 65,535 with the headers of IPv4 and UDP.
const LONGEST_SEND: usize = 65_507;

/// Datagrams to one place that leave by one system call, if the path allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run<'a> {
    /// Who sent them.
    pub(super) from: SocketAddr,
    pub(super) class: TrafficClass,
    pub(super) pieces: Pieces,
    /// One after the other, each of `size` bytes but the last, which may be shorter.
    pub(super) contents: &'a [u8],
    pub(super) size: usize,
}

impl<'a> Run<'a> {
    /// A single datagram of ours.
    pub(super) const fn one(from: SocketAddr, payload: &'a [u8]) -> Self {
        let (class, pieces) = (TrafficClass(0), Pieces::One);
        Self { from, class, pieces, contents: payload, size: payload.len() }
    }

    /// One that came by a listener.
    pub(super) const fn of(datagram: &Datagram<'a>) -> Self {
        let Datagram { client, class, pieces, payload, .. } = *datagram;
        Self { from: client.0, class, pieces, contents: payload, size: payload.len() }
    }

    /// The datagrams, each for itself. Empty ones are datagrams too.
    pub(super) fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let empty = self.contents.is_empty().then_some(self.contents);
        empty.into_iter().chain(self.contents.chunks(self.size.max(1)))
    }

    pub(super) fn count(&self) -> u32 {
        datagrams(self.contents.len(), self.size) as u32
    }
}

/// What may be put together for one socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Most {
    /// Datagrams.
    pub(super) datagrams: usize,
    /// Bytes of each of them.
    pub(super) size: usize,
}

/// The messages of one receive call. A worker has one of these for all its sockets; memory that was never written to
/// costs nothing.
pub(super) struct Batch {
    memory: Box<[u8]>,
    messages: [Message; BATCH_SIZE],
    received: usize,
    taken: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            memory: vec![0; BATCH_SIZE * MESSAGE].into_boxed_slice(),
            messages: [Message::NOTHING; BATCH_SIZE],
            received: 0,
            taken: 0,
        }
    }

    /// Receives what is there, in place of what was.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing; else the socket's pending error, which this clears (`sock_error`).
    pub(super) fn receive(&mut self, socket: &impl AsFd) -> io::Result<()> {
        (self.received, self.taken) = (0, 0);
        self.received = receive_messages(socket, &mut self.memory, MESSAGE, &mut self.messages)?;
        Ok(())
    }

    /// Who sent what comes next.
    pub(super) fn next_from(&self) -> Option<SocketAddr> {
        self.messages[self.taken..self.received].first().map(|message| message.from)
    }

    /// What comes next, and can leave together.
    pub(super) fn next_run(&mut self, most: Most) -> Option<Run<'_>> {
        let messages = &self.messages[self.taken..self.received];
        let Message { from, class, pieces, size, .. } = *messages.first()?;
        let start = self.taken * MESSAGE;
        let mut end = start;
        for message in &messages[..together(messages, most)] {
            let place = self.taken * MESSAGE;
            // The first lies where it has to, and those after it find room: a message is shorter than its buffer.
            if place != end {
                self.memory.copy_within(place..place + message.length, end);
            }
            end += message.length;
            self.taken += 1;
        }
        Some(Run { from, class, pieces, contents: &self.memory[start..end], size })
    }
}

/// How many of these messages, of which there is at least one, can leave together.
fn together(messages: &[Message], most: Most) -> usize {
    let (first, rest) = (&messages[0], &messages[1..]);
    let size = first.size;
    let mut bytes = first.length;
    let mut count = datagrams(first.length, first.size);
    if first.length == 0 || size > most.size {
        return 1;
    }
    let mut taken = 1;
    for next in rest {
        let joins = next.from == first.from
            && (next.class, next.pieces) == (first.class, first.pieces)
            && bytes % size == 0
            && (next.size == size || (next.length < size && next.size == next.length))
            && next.length > 0;
        bytes += next.length;
        count += datagrams(next.length, next.size);
        if !joins || bytes > LONGEST_SEND || count > most.datagrams {
            break;
        }
        taken += 1;
    }
    taken
}

fn datagrams(bytes: usize, size: usize) -> usize {
    bytes.div_ceil(size.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Messages as the kernel makes them: one datagram, or several of a size but for the last.
    fn message() -> impl Strategy<Value = (u16, u8, Vec<u8>, usize)> {
        let sizes = prop_oneof![Just(0_usize), Just(1), Just(40), Just(1200), 1..9000_usize];
        let many = prop_oneof![3 => Just(1_usize), 1 => 1..20_usize];
        (1..3_u16, prop_oneof![4 => Just(0_u8), 1 => 0..4_u8], sizes, many, 0..9000_usize).prop_map(
            |(from, class, size, many, shorter)| {
                let length = (size * many).saturating_sub(shorter % size.max(1)).min(MESSAGE - 1);
                let contents = (0..length).map(|place| (place % 251) as u8).collect();
                (from, class, contents, size.min(length))
            },
        )
    }

    fn batch_of(messages: &[(u16, u8, Vec<u8>, usize)]) -> Batch {
        let mut batch = Batch::new();
        for (index, (from, class, contents, stride)) in messages.iter().enumerate() {
            batch.memory[index * MESSAGE..][..contents.len()].copy_from_slice(contents);
            let message = &mut batch.messages[index];
            message.from = ([127, 0, 0, 1], *from).into();
            message.class = TrafficClass(*class);
            (message.length, message.size) = (contents.len(), *stride);
        }
        batch.received = messages.len();
        batch
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn runs_carry_the_same_datagrams_in_the_same_order(
            messages in prop::collection::vec(message(), 0..BATCH_SIZE),
            most in (1..65_usize, prop_oneof![Just(0_usize), Just(1500), Just(1 << 16)]),
        ) {
            let most = Most { datagrams: most.0, size: most.1 };
            let sent: Vec<_> = messages
                .iter()
                .flat_map(|(from, class, contents, size)| {
                    let (from, class) = (([127, 0, 0, 1], *from).into(), TrafficClass(*class));
                    let run = Run { from, class, pieces: Pieces::One, contents, size: *size };
                    run.datagrams().map(move |datagram| (run.from, run.class, datagram))
                })
                .collect();
            let mut batch = batch_of(&messages);
            let mut place = 0;
            while let Some(next) = batch.next_from() {
                let messages = together(&batch.messages[batch.taken..batch.received], most);
                let run = batch.next_run(most).unwrap();
                prop_assert_eq!(run.from, next);
                prop_assert_eq!(run.count() as usize, run.datagrams().count());
                let put_together: Vec<_> = run.datagrams().map(|datagram| (run.from, run.class, datagram)).collect();
                prop_assert_eq!(&sent[place..place + put_together.len()], &put_together);
                place += put_together.len();
                if messages > 1 {
                    prop_assert!(put_together.len() <= most.datagrams);
                    let run_size = put_together[0].2.len();
                    prop_assert!(run_size <= most.size);
                    prop_assert!(put_together.iter().map(|datagram| datagram.2.len()).sum::<usize>() <= LONGEST_SEND);
                }
            }
            prop_assert_eq!(place, sent.len());
        }
    }

    #[test]
    fn equal_datagrams_leave_together_and_a_shorter_one_ends_it() {
        let datagram = |size: usize| (1, 0, vec![7; size], size);
        let mut batch = batch_of(&[1200, 1200, 1200, 80, 1200, 0, 80, 1200].map(datagram));
        let most = Most { datagrams: 64, size: 1 << 16 };
        let runs: Vec<_> = std::iter::from_fn(|| batch.next_run(most).map(|run| run.count())).collect();
        assert_eq!(runs, [4, 1, 1, 1, 1]);
    }

    #[test]
    fn what_was_received_together_joins_others() {
        let mut batch = batch_of(&[
            (1, 0, vec![1; 3600], 1200),
            (1, 0, vec![2; 1300], 1200),
            (1, 0, vec![3; 1200], 1200),
        ]);
        let most = Most { datagrams: 64, size: 1 << 16 };
        let run = batch.next_run(most).unwrap();
        assert_eq!((run.contents.len(), run.count()), (4900, 5));
        assert_eq!(batch.next_run(most).unwrap().contents, [3; 1200]);
    }
}
