//! What is known of one connection, and the two lines that are written about it.

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::net::TcpStream;
use tproxy_common::{abi::Origin, flow::Protocol};

use super::{End, pipe::Pipe, service::Shared};
use crate::{
    flow::{ClientAddr, OriginalDst},
    flows::{LiveEntry, Selection},
    generation::{ChosenRule, KeptRule},
    limits::Place,
    socket::TrafficClass,
    upstreams::{Pool, Use},
};

/// A live connection. It is counted and logged as ended when it is dropped: by then [`Connection::end`]
/// says how, or it was cut off: by somebody who asked for it, or by a stop.
pub(super) struct Connection {
    pub(super) shared: Rc<Shared>,
    pub(super) live: LiveEntry,
    /// client → upstream
    pub(super) up: Pipe,
    /// upstream → client
    pub(super) down: Pipe,
    rule: ChosenRule,
    /// How its SYN came.
    arrived: Arrived,
    _place: Place,
    /// By which server of several it goes.
    pub(super) used: Option<Use>,
    announced: Announced,
    counted: Counted,
    end: Option<Ended>,
}

/// How the SYN of a connection came.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Arrived {
    /// Its class, and so that of all packets.
    pub(super) class: TrafficClass,
    pub(super) origin: Origin,
}

/// How a connection ended, with what the kernel said where it said something.
pub(super) struct Ended {
    pub(super) end: End,
    pub(super) error: Option<String>,
    /// Where the upstream's socket failed to connect.
    pub(super) kind: Option<io::ErrorKind>,
}

#[derive(PartialEq, Eq)]
enum Announced {
    No,
    Yes,
}

/// What the counters already have.
#[derive(Default)]
struct Counted {
    up: u64,
    down: u64,
}

impl From<End> for Ended {
    fn from(end: End) -> Self {
        Self { end, error: None, kind: None }
    }
}

/// The client's socket failed.
pub(super) fn client_failed(error: &io::Error) -> Ended {
    let end = failure(error, [End::ClientReset, End::ClientLost]);
    Ended { end, error: Some(error.to_string()), kind: None }
}

/// The upstream's socket failed, after it was connected.
pub(super) fn upstream_failed(error: &io::Error) -> Ended {
    let end = failure(error, [End::UpstreamReset, End::UpstreamLost]);
    Ended { end, error: Some(error.to_string()), kind: None }
}

/// What a socket that is ready with an error has to say.
pub(super) fn pending_error(stream: &TcpStream) -> io::Error {
    let taken = stream.take_error().unwrap_or_else(Some);
    // Somebody has collected it before us, by a read or a write whose failure was seen.
    taken.unwrap_or_else(|| io::ErrorKind::NotConnected.into())
}

fn failure(error: &io::Error, [reset, lost]: [End; 2]) -> End {
    match error.kind() {
        // Sockets are aborted when their address goes (`lingering::abort`), and by nothing else but `ss --kill`.
        io::ErrorKind::ConnectionAborted => End::AddressGone,
        _ if is_reset(error) => reset,
        _ => lost,
    }
}

/// A reset after the peer's FIN is `EPIPE` (`tcp_reset` in `CLOSE_WAIT`), and once somebody has
/// collected the error, the socket is just not connected.
pub(super) fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), ConnectionReset | BrokenPipe | NotConnected)
}

/// A place for one more connection, for which one of who has most may have to end; there is none, and the client is told of,
/// where that is not to be.
pub(super) fn place(
    shared: &Shared,
    rule: &ChosenRule,
    client: ClientAddr,
    dst: OriginalDst,
) -> Option<Place> {
    match rule.place(client) {
        Ok(place) => {
            if let Some(other) = place.instead_of() {
                shared.flows.close_one_of(other);
            }
            Some(place)
        }
        Err(full) => {
            tracing::warn!(%client, %dst, rule = %rule.name, %full, "refused");
            None
        }
    }
}

/// Counts and logs a connection that is not ours to serve. Anybody can make many of them, so its line
/// is not for everyday logs.
pub(super) fn refuse(shared: &Shared, client: ClientAddr, dst: OriginalDst, end: End) {
    shared.counters.ended(end);
    tracing::debug!(%client, %dst, %end, "refused");
}

impl Connection {
    pub(super) fn new(
        shared: Rc<Shared>,
        client: ClientAddr,
        dst: OriginalDst,
        rule: ChosenRule,
        arrived: Arrived,
        place: Place,
    ) -> Self {
        shared.live.begin();
        shared.affinity.begin();
        let name = Arc::clone(&rule.name);
        let selection =
            Selection { protocol: Protocol::Tcp, scope: rule.reach.scope, rule: name, client, dst };
        Self {
            live: shared.flows.enter(selection),
            shared,
            up: Pipe::default(),
            down: Pipe::default(),
            rule,
            arrived,
            _place: place,
            used: None,
            announced: Announced::No,
            counted: Counted::default(),
            end: None,
        }
    }

    pub(super) fn client(&self) -> ClientAddr {
        self.live.selection().client
    }

    pub(super) fn dst(&self) -> OriginalDst {
        self.live.selection().dst
    }

    pub(super) const fn arrived(&self) -> &Arrived {
        &self.arrived
    }

    pub(super) fn rule(&self) -> &KeptRule {
        &self.rule
    }

    /// The servers of its upstream, where its rule names some.
    pub(super) fn pool(&self) -> Option<&Arc<Pool>> {
        self.rule.pool()
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        self.rule().treatment.timeouts.connect.unwrap_or(self.rule.generation().timeouts().connect)
    }

    /// After which silence both ends are asked whether they are still there.
    pub(super) fn keepalive(&self) -> Duration {
        self.rule().treatment.timeouts.keepalive.unwrap_or(self.rule.generation().timeouts().keepalive)
    }

    pub(super) fn idle_timeout(&self) -> Duration {
        self.rule().treatment.timeouts.idle.unwrap_or(self.rule.generation().timeouts().idle)
    }

    /// Writes the first line, once it is known whether there is an upstream socket.
    pub(super) fn announce(&mut self, upstream: Option<SocketAddr>, socket: Option<&TcpStream>) {
        if let Some(upstream) = upstream {
            self.live.leads_to(upstream);
        }
        let rule = self.rule();
        // Asking the kernel takes a system call.
        let is_written = tracing::enabled!(tracing::Level::INFO);
        let source = socket.filter(|_| is_written).and_then(|socket| socket.local_addr().ok());
        tracing::info!(
            client = %self.client(),
            dst = %self.dst(),
            rule = %rule.name,
            action = %rule.treatment.action,
            upstream = upstream.map(display),
            source = source.map(display),
            "accepted"
        );
        self.announced = Announced::Yes;
    }

    pub(super) fn ended(&mut self, ended: Ended) {
        self.end = Some(ended);
    }

    /// Counts what was moved since the last call, and says whether that was anything.
    pub(super) fn count(&mut self) -> bool {
        let (up, down) = (self.up.read - self.counted.up, self.down.written - self.counted.down);
        if (up, down) == (0, 0) {
            return false;
        }
        self.shared.counters.bytes_up.fetch_add(up, Relaxed);
        self.shared.counters.bytes_down.fetch_add(down, Relaxed);
        self.live.set_bytes(self.up.read, self.down.written);
        self.counted = Counted { up: self.up.read, down: self.down.written };
        true
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.announced == Announced::No {
            self.announce(None, None);
        }
        self.count();
        self.up.abandon(&self.shared.buffers);
        self.down.abandon(&self.shared.buffers);
        let cut_off = if self.live.is_closing() { End::Closed } else { End::Stopped };
        let Ended { end, error, .. } = self.end.take().unwrap_or(Ended::from(cut_off));
        self.live.ended(end.name());
        tracing::info!(
            client = %self.client(),
            dst = %self.dst(),
            rule = %self.rule().name,
            bytes_up = self.up.read,
            bytes_down = self.down.written,
            duration = ?self.live.began().elapsed(),
            %end,
            error,
            "closed"
        );
        self.shared.counters.ended(end);
        self.shared.affinity.end();
        self.shared.live.end();
    }
}
