//! Whether an idle connection's ends are still there, and what is between them still knows of it: a NAT in front of this host
//! forgets what is silent, and the client's own probes end here.

use std::time::Duration;

use tokio::{net::TcpStream, time::Instant};

use crate::socket;

/// The first look at a connection that is idle, in seconds. Each is at twice the silence of the one before.
const FIRST_LOOK: u16 = 2;

/// Looks at one connection. By then it was idle often enough to know.
const MOST_LOOKS: u8 = 12;

/// What is asked of both ends of a connection, and since when.
///
/// Probes reach the kernel alone. That a client sends some shows in how many segments have come in while no byte did.
pub(super) struct KeepAlive {
    /// In seconds, as the kernel counts.
    interval: u16,
    /// The silence at the next look, in seconds.
    next: u16,
    looks: u8,
    /// Segments of the client when it was looked at, and when that was.
    seen: Option<(u32, Instant)>,
}

impl KeepAlive {
    pub(super) fn new(interval: Duration) -> Self {
        let interval = interval.as_secs().clamp(1, i16::MAX as u64) as u16;
        Self { interval, next: FIRST_LOOK.min(interval), looks: 0, seen: None }
    }

    /// The silence after which it is to be looked at.
    pub(super) fn due(&self) -> Option<Duration> {
        (self.looks < MOST_LOOKS).then_some(Duration::from_secs(self.next.into()))
    }

    /// Looks at a connection in which no byte has moved since `last_moved`.
    pub(super) fn look(&mut self, client: &TcpStream, upstream: &TcpStream, last_moved: Instant) {
        if self.looks == 0 {
            self.ask(upstream);
            self.ask(client);
        }
        self.looks += 1;
        let now = Instant::now();
        let Ok(segments) = socket::segments_received(client) else { return };
        match self.seen.filter(|(_, then)| *then > last_moved) {
            Some((before, then)) if segments != before => {
                let between = (now - then).as_secs() as u32 / segments.wrapping_sub(before);
                self.interval = self.interval.min(between.max(1) as u16);
                self.ask(upstream);
                self.looks = MOST_LOOKS;
            }
            Some(_) => {}
            None => self.seen = Some((segments, now)),
        }
        let silence = now.duration_since(last_moved).as_secs();
        if silence > u64::from(self.interval) {
            // The client would have asked by now.
            self.looks = MOST_LOOKS;
        }
        self.next = (silence * 2).clamp(FIRST_LOOK.into(), u16::MAX.into()) as u16;
    }

    fn ask(&self, end: &TcpStream) {
        // It fails for no socket of ours.
        let _ = socket::keep_alive(end, Duration::from_secs(self.interval.into()));
    }
}
