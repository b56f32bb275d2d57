//! What a worker needs for UDP, and the loop that serves it.

use std::{
    convert::Infallible,
    future, io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use socket2::Socket;
use tokio::{
    task::yield_now,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    Endpoints, Memory, UdpCounters,
    batch::Batch,
    listener::Listener,
    readiness::{Readiness, Token, Told},
    relay::Relay,
};
use crate::{
    family::Family,
    flows::FlowTable,
    generation::Generations,
    live::LiveCount,
    mark::Mark,
    socket::{self, IcmpSender, RawSender, SocketError},
    way::Routing,
};

/// Between two looks for sessions that have ended by silence.
const SWEEP: Duration = Duration::from_secs(1);

/// Sessions ended in one go; closing their sockets takes time that others wait.
const SWEPT_AT_ONCE: usize = 64;

/// Sockets dealt with before the runtime has its turn.
const TURN: usize = 32;

/// What a worker needs for UDP.
pub struct Setup {
    /// A set for each address family; the datapath already knows their listeners.
    pub sockets: Vec<Sockets>,
    /// What all UDP listeners of the instance are bound to, to tell datagrams to ourselves.
    pub bound: Arc<[SocketAddr]>,
    /// The rules, with the limits of sessions.
    pub generations: Generations,
    /// How many workers share what there may be of sessions.
    pub workers: usize,
    /// The mark of the instance, for all sockets.
    pub mark: Mark,
    /// What the host's routing rules mean to sockets towards upstreams.
    pub routing: Routing,
    /// As whom clients are seen.
    pub endpoints: Endpoints,
    /// What the datapath remembers.
    pub memory: Box<dyn Memory>,
    /// Where this worker counts.
    pub counters: Arc<UdpCounters>,
    /// Where its sessions are while they live.
    pub flows: Arc<FlowTable>,
}

/// The sockets of one address family that all sessions of a worker have in common.
pub struct Sockets {
    pub(super) family: Family,
    pub(super) listener: Socket,
    pub(super) raw: RawSender,
    pub(super) icmp: IcmpSender,
}

impl Sockets {
    /// Makes them.
    ///
    /// # Errors
    /// Missing privileges, or lack of descriptors.
    pub fn open(family: Family, mark: Mark) -> Result<Self, SocketError> {
        Ok(Self {
            family,
            listener: socket::datagram_listener(family, mark)?,
            raw: RawSender::new(family, mark)?,
            icmp: IcmpSender::new(family, mark)?,
        })
    }

    /// The address family.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// The socket to which the datapath steers.
    #[must_use]
    pub const fn listener(&self) -> &Socket {
        &self.listener
    }
}

/// The UDP side of a worker, ready to be moved to its thread.
pub(crate) struct Service {
    listeners: Vec<Listener>,
    readiness: Readiness,
    relay: Relay,
    batch: Batch,
    draining: CancellationToken,
}

impl Service {
    /// To be called inside the worker's runtime.
    pub(crate) fn new(mut setup: Setup, live: LiveCount, draining: CancellationToken) -> io::Result<Self> {
        let readiness = Readiness::new()?;
        let watch = readiness.watch();
        let (mut listeners, mut senders) = (Vec::new(), Vec::new());
        for Sockets { family, listener, raw, icmp } in setup.sockets.drain(..) {
            watch.add(&listener, Token::Listener(family))?;
            listeners.push(Listener::new(family, listener)?);
            senders.push((family, raw, icmp));
        }
        let relay = Relay::new(setup, senders, live, watch);
        Ok(Self { listeners, readiness, relay, batch: Batch::new(), draining })
    }

    /// Serves for ever, on the worker's thread. When it is dropped, the sessions end.
    pub(crate) async fn serve(mut self) -> Infallible {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweeping = false;
        let mut attended = 0;
        let flows = Arc::clone(&self.relay.flows);
        let mut gone = self.relay.gone.clone();
        loop {
            let is_waited_for = self.listeners.iter().any(Listener::is_waited_for);
            tokio::select! {
                () = self.readiness.wait() => {
                    while let Some((token, told)) = self.readiness.take() {
                        self.attend(token, told);
                        attended += 1;
                    }
                }
                _ = sweep.tick() => {
                    self.relay.adopt_limits(Instant::now());
                    self.relay.look_again();
                    sweeping = true;
                }
                Ok(()) = gone.changed() => {
                    let gone = Arc::clone(&gone.borrow_and_update());
                    self.relay.hear(gone);
                }
                () = flows.closing() => self.relay.end_closing(Instant::now()),
                () = future::ready(()), if sweeping || is_waited_for => {
                    sweeping = sweeping && self.sweep();
                    self.read_on();
                    attended += 1;
                }
            }
            if attended >= TURN {
                attended = 0;
                // The other tasks of the worker have their turn.
                yield_now().await;
            }
        }
    }

    /// Ends some of the sessions that have been silent for too long. Says whether there may be more.
    fn sweep(&mut self) -> bool {
        let (draining, now) = (self.draining.is_cancelled(), Instant::now());
        let more = (0..SWEPT_AT_ONCE).all(|_| self.relay.sweep(draining, &mut self.batch, now));
        self.settle(now);
        more
    }

    /// Reads listeners that sessions wait for. If there is nothing in them, nobody else says so.
    fn read_on(&mut self) {
        for listener in self.listeners.iter_mut().filter(|listener| listener.is_waited_for()) {
            listener.receive(&mut self.relay, Instant::now());
        }
    }

    fn attend(&mut self, token: Token, told: Told) {
        let now = Instant::now();
        if told == Told::Error {
            self.relay.look_at_errors(token, now);
        }
        match token {
            Token::Listener(family) => {
                let listener = self.listeners.iter_mut().find(|listener| listener.family() == family);
                listener.expect("it was registered").receive(&mut self.relay, now);
            }
            Token::Client(id) => self.relay.read_client(id, &mut self.batch, now),
            Token::Upstream(id) => self.relay.read_upstream(id, &mut self.batch, now),
            Token::Mapping(index) => self.relay.read_mapping(index, &mut self.batch, now),
        }
        self.settle(now);
    }

    /// What came to light while datagrams were moved.
    fn settle(&mut self, now: Instant) {
        self.relay.end_answered(&mut self.batch, now);
        for stray in std::mem::take(&mut self.relay.strays) {
            let datagram = stray.as_datagram();
            let family = Family::of(datagram.client.0.ip());
            if let Some(listener) = self.listeners.iter_mut().find(|listener| listener.family() == family) {
                listener.take(&datagram, &mut self.relay, now);
            }
        }
    }
}
