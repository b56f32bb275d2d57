//! What is counted about TCP, and how a connection can end.

use std::{
    fmt,
    iter::Sum,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::{
    counts::counts,
    latency::{Latencies, Latency},
};

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides said that they had no more to send.
    Eof,
    /// The client reset it; the upstream was reset.
    ClientReset,
    /// The upstream reset it; the client was reset.
    UpstreamReset,
    /// The client no longer answers or can no longer be reached; the upstream was reset.
    ClientLost,
    /// The upstream no longer answers or can no longer be reached; the client was reset.
    UpstreamLost,
    /// A local address of it is gone from this host; both sides were reset.
    AddressGone,
    /// The upstream refused; the client was reset.
    ConnectRefused,
    /// The upstream did not answer in time; the client was reset.
    ConnectTimeout,
    /// There is no way to the upstream; the client was reset.
    Unreachable,
    /// Making the upstream socket failed here; the client was reset.
    ConnectFailed,
    /// The name of the upstream has no address, or could not be asked for; the client was reset.
    UpstreamUnresolved,
    /// The upstream wants other credentials than it was given, or any; the client was reset.
    UpstreamUnauthorized,
    /// The upstream does not allow the destination; the client was reset.
    UpstreamDenied,
    /// The upstream said that it cannot connect, for another reason than that nobody is there; the client was reset.
    UpstreamFailed,
    /// What the upstream answered makes no sense; the client was reset.
    UpstreamNonsense,
    /// The upstream answered more than an answer can be; the client was reset.
    UpstreamTooMuch,
    /// The upstream said nothing and closed; the client was reset.
    UpstreamClosed,
    /// The upstream closed in the midst of its answer; the client was reset.
    UpstreamCut,
    /// The upstream was connected, and did not answer in time; the client was reset.
    UpstreamSilent,
    /// No byte moved for too long, or a client that was answered did not close in time; both sides
    /// were reset.
    IdleTimeout,
    /// Reset because we were told to stop.
    Stopped,
    /// Somebody asked for its end (`tproxy close`); both sides were reset.
    Closed,
    /// Its rule had as many connections as it may have; the client was reset.
    OverLimit,
    /// The original destination was a listener of ours; the client was reset.
    Loop,
    /// The datapath has no record of an interception; the client was reset.
    Undecided,
}

impl End {
    pub(crate) const ALL: [Self; 25] = [
        Self::Eof,
        Self::ClientReset,
        Self::UpstreamReset,
        Self::ClientLost,
        Self::UpstreamLost,
        Self::AddressGone,
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::Unreachable,
        Self::ConnectFailed,
        Self::UpstreamUnresolved,
        Self::UpstreamUnauthorized,
        Self::UpstreamDenied,
        Self::UpstreamFailed,
        Self::UpstreamNonsense,
        Self::UpstreamTooMuch,
        Self::UpstreamClosed,
        Self::UpstreamCut,
        Self::UpstreamSilent,
        Self::IdleTimeout,
        Self::Stopped,
        Self::Closed,
        Self::OverLimit,
        Self::Loop,
        Self::Undecided,
    ];

    /// The word for it in logs and counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eof => "eof",
            Self::ClientReset => "client_reset",
            Self::UpstreamReset => "upstream_reset",
            Self::ClientLost => "client_lost",
            Self::UpstreamLost => "upstream_lost",
            Self::AddressGone => "address_gone",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::Unreachable => "unreachable",
            Self::ConnectFailed => "connect_failed",
            Self::UpstreamUnresolved => "upstream_unresolved",
            Self::UpstreamUnauthorized => "upstream_unauthorized",
            Self::UpstreamDenied => "upstream_denied",
            Self::UpstreamFailed => "upstream_failed",
            Self::UpstreamNonsense => "upstream_nonsense",
            Self::UpstreamTooMuch => "upstream_too_much",
            Self::UpstreamClosed => "upstream_closed",
            Self::UpstreamCut => "upstream_cut",
            Self::UpstreamSilent => "upstream_silent",
            Self::IdleTimeout => "idle_timeout",
            Self::Stopped => "stopped",
            Self::Closed => "closed",
            Self::OverLimit => "over_limit",
            Self::Loop => "loop",
            Self::Undecided => "undecided",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What one worker has seen since it started. Each worker has its own, so that counting a chunk
/// touches no cache line of another CPU; [`Snapshot`]s can be summed.
#[derive(Debug, Default)]
pub struct TcpCounters {
    pub(super) accepted: AtomicU64,
    pub(super) bytes_up: AtomicU64,
    pub(super) bytes_down: AtomicU64,
    pub(super) source_fallbacks: AtomicU64,
    pub(super) decided_again: AtomicU64,
    pub(super) out_of_descriptors: AtomicU64,
    pub(super) connect_latency: Latency,
    accept_latency: Arc<Latency>,
    ends: [AtomicU64; End::ALL.len()],
}

impl TcpCounters {
    /// Where it is counted how long accepted connections have waited since their first packets.
    #[must_use]
    pub fn accept_latency(&self) -> Arc<Latency> {
        Arc::clone(&self.accept_latency)
    }

    pub(super) fn ended(&self, end: End) {
        self.ends[end as usize].fetch_add(1, Relaxed);
    }

    /// The counters as they are now. They are read one after the other, not all in one instant.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        // Ends before `accepted`, so that a connection that comes and goes meanwhile is never counted
        // as one that ended without having been accepted.
        let ends = End::ALL.map(|end| (end, read(&self.ends[end as usize])));
        Snapshot {
            ends,
            accepted: read(&self.accepted),
            bytes_up: read(&self.bytes_up),
            bytes_down: read(&self.bytes_down),
            source_fallbacks: read(&self.source_fallbacks),
            decided_again: read(&self.decided_again),
            out_of_descriptors: read(&self.out_of_descriptors),
            accept_latency: self.accept_latency.snapshot(),
            connect_latency: self.connect_latency.snapshot(),
        }
    }
}

/// The counters of one or, summed, of several workers at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Connections taken off a listener.
    pub accepted: u64,
    /// Bytes read from clients.
    pub bytes_up: u64,
    /// Bytes written to clients.
    pub bytes_down: u64,
    /// Upstream connections that could not have the client's port and got another one.
    pub source_fallbacks: u64,
    /// Connections whose rule the datapath had forgotten when they were accepted.
    pub decided_again: u64,
    /// Times that `accept` failed for lack of descriptors or memory.
    pub out_of_descriptors: u64,
    /// From the first packet of a connection to its accept, which includes the handshake with the client.
    pub accept_latency: Latencies,
    /// From the accept to the connection with the upstream.
    pub connect_latency: Latencies,
    /// Connections by how they ended.
    pub ends: [(End, u64); End::ALL.len()],
}

impl Snapshot {
    /// Connections accepted that have not ended.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.accepted - self.ends.iter().map(|(_, count)| count).sum::<u64>()
    }

    /// Connections that ended this way.
    #[must_use]
    pub fn ended(&self, end: End) -> u64 {
        self.ends[end as usize].1
    }

    /// All of it, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("accepted", self.accepted),
            ("active", self.active()),
            ("bytes_up", self.bytes_up),
            ("bytes_down", self.bytes_down),
            ("source_fallbacks", self.source_fallbacks),
            ("decided_again", self.decided_again),
            ("out_of_descriptors", self.out_of_descriptors),
        ]
        .into_iter()
        .chain(self.ends.into_iter().map(|(end, count)| (end.name(), count)))
    }
}

impl Sum for Snapshot {
    fn sum<I: Iterator<Item = Self>>(snapshots: I) -> Self {
        snapshots.fold(TcpCounters::default().snapshot(), |a, b| Self {
            accepted: a.accepted + b.accepted,
            bytes_up: a.bytes_up + b.bytes_up,
            bytes_down: a.bytes_down + b.bytes_down,
            source_fallbacks: a.source_fallbacks + b.source_fallbacks,
            decided_again: a.decided_again + b.decided_again,
            out_of_descriptors: a.out_of_descriptors + b.out_of_descriptors,
            accept_latency: [a.accept_latency, b.accept_latency].into_iter().sum(),
            connect_latency: [a.connect_latency, b.connect_latency].into_iter().sum(),
            ends: End::ALL.map(|end| (end, a.ended(end) + b.ended(end))),
        })
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
        let (one, other) = (TcpCounters::default(), TcpCounters::default());
        one.accepted.store(2, Relaxed);
        one.ended(End::Eof);
        other.accepted.store(1, Relaxed);
        other.ended(End::Undecided);
        let sum: Snapshot = [&one, &other].map(TcpCounters::snapshot).into_iter().sum();
        assert_eq!(TcpCounters::default().snapshot().to_string(), "none");
        assert_eq!(sum.active(), 1);
        assert_eq!(sum.to_string(), "accepted=3 active=1 eof=1 undecided=1");
    }

    #[test]
    fn every_end_has_its_own_slot() {
        for (slot, end) in End::ALL.into_iter().enumerate() {
            assert_eq!(end as usize, slot);
        }
    }
}
