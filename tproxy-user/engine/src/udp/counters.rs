//! What is counted about UDP, and how a session can end.

use std::{
    fmt,
    iter::Sum,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::counts::counts;

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// No datagram passed for too long.
    Idle,
    /// As many answers as queries have passed (DNS).
    Answered,
    /// Nobody at the client's address receives any more.
    ClientRefused,
    /// It made room for another.
    Evicted,
    /// We were told to stop.
    Stopped,
    /// Somebody asked for its end (`tproxy close`), or has taken it and is done with it.
    Closed,
}

impl End {
    pub(crate) const ALL: [Self; 6] =
        [Self::Idle, Self::Answered, Self::ClientRefused, Self::Evicted, Self::Stopped, Self::Closed];

    /// The word for it in logs and counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Answered => "answered",
            Self::ClientRefused => "client_refused",
            Self::Evicted => "evicted",
            Self::Stopped => "stopped",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Everything that is counted but the ends: `counter: name in logs, "what it is"`.
macro_rules! counters {
    ($($(#[$doc:meta])* $counter:ident: $name:literal,)*) => {
        /// What one worker has seen since it started. Each worker has its own, so that counting touches no cache line
        /// of another CPU; [`Snapshot`]s can be summed.
        #[derive(Debug, Default)]
        pub struct UdpCounters {
            $(pub(super) $counter: AtomicU64,)*
            ends: [AtomicU64; End::ALL.len()],
        }

        /// The counters of one or, summed, of several workers at one time.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct Snapshot {
            $($(#[$doc])* pub $counter: u64,)*
            /// Sessions by how they ended.
            pub ends: [(End, u64); End::ALL.len()],
        }

        impl UdpCounters {
            /// The counters as they are now. They are read one after the other, not all in one instant.
            #[must_use]
            pub fn snapshot(&self) -> Snapshot {
                let read = |counter: &AtomicU64| counter.load(Relaxed);
                // Ends before `sessions`, so that a session that comes and goes meanwhile is never counted as one that
                // ended without having begun.
                let ends = End::ALL.map(|end| (end, read(&self.ends[end as usize])));
                Snapshot { ends, $($counter: read(&self.$counter),)* }
            }
        }

        impl Snapshot {
            fn counted(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$(($name, self.$counter),)*].into_iter()
            }
        }

        impl Sum for Snapshot {
            fn sum<I: Iterator<Item = Self>>(snapshots: I) -> Self {
                snapshots.fold(UdpCounters::default().snapshot(), |a, b| Self {
                    $($counter: a.$counter + b.$counter,)*
                    ends: End::ALL.map(|end| (end, a.ended(end) + b.ended(end))),
                })
            }
        }
    };
}

counters! {
    /// Sessions begun.
    sessions: "sessions",
    /// Datagrams sent to upstreams, or answered in their place.
    datagrams_up: "datagrams_up",
    /// Datagrams sent to clients.
    datagrams_down: "datagrams_down",
    /// Bytes in these.
    bytes_up: "bytes_up",
    /// Bytes in these.
    bytes_down: "bytes_down",
    /// Busy sessions without a socket of their own: somebody of this host holds the original destination's port.
    reply_fallbacks: "reply_fallbacks",
    /// Upstream sockets that could not have the client's port and got another one.
    source_fallbacks: "source_fallbacks",
    /// Sockets made anew with another address of this host, since theirs was gone.
    moved: "moved",
    /// Datagrams to clients from peers that they have no session with.
    unsolicited: "unsolicited",
    /// Datagrams to sockets with one peer from another, which came just as they were connected.
    not_from_peer: "not_from_peer",
    /// Datagrams that `respond` left without an answer: too many, too short for it, or themselves answers.
    unanswered: "unanswered",
    /// Times that a socket could not be made for lack of descriptors or memory.
    out_of_descriptors: "out_of_descriptors",
    /// Times that an upstream socket found no local port.
    out_of_ports: "out_of_ports",
    /// Datagrams of flows for which no upstream socket could be made.
    no_upstream: "no_upstream",
    /// Datagrams sent on as they were: no rule selects them, but it took all fragments to know.
    carried: "carried",
    /// Datagrams that the datapath has no record of.
    undecided: "undecided",
    /// Datagrams to a listener of ours.
    to_ourselves: "loop",
    /// Datagrams that the kernel did not take from us.
    send_errors: "send_errors",
    /// ICMP errors passed on to clients.
    icmp_sent: "icmp_sent",
    /// ICMP errors not passed on, since there were too many.
    icmp_suppressed: "icmp_suppressed",
}

impl UdpCounters {
    pub(super) fn ended(&self, end: End) {
        add(&self.ends[end as usize], 1);
    }
}

/// Counts. A counter has one writer, so that no locked instruction is needed.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Relaxed) + count, Relaxed);
}

impl Snapshot {
    /// Sessions begun that have not ended.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.sessions - self.ends.iter().map(|(_, count)| count).sum::<u64>()
    }

    /// Sessions that ended this way.
    #[must_use]
    pub fn ended(&self, end: End) -> u64 {
        self.ends[end as usize].1
    }

    /// All of it, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let ends = self.ends.into_iter().map(|(end, count)| (end.name(), count));
        self.counted().chain([("active", self.active())]).chain(ends)
    }
}

/// As the last line of a run shows it.
impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&counts(self.iter()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_sum_by_name() {
        let (one, other) = (UdpCounters::default(), UdpCounters::default());
        add(&one.sessions, 2);
        one.ended(End::Answered);
        add(&other.sessions, 1);
        add(&other.to_ourselves, 3);
        let sum: Snapshot = [&one, &other].map(UdpCounters::snapshot).into_iter().sum();
        assert_eq!(UdpCounters::default().snapshot().to_string(), "none");
        assert_eq!(sum.to_string(), "sessions=3 loop=3 active=2 answered=1");
    }

    #[test]
    fn every_end_has_its_own_slot() {
        for (slot, end) in End::ALL.into_iter().enumerate() {
            assert_eq!(end as usize, slot);
        }
    }
}
