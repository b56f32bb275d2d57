//! What a worker needs for UDP, and the loop that serves it.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    future, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use socket2::Socket;
use tokio::{
    sync::{mpsc, watch},
    task::yield_now,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    Endpoints, Memory, UdpCounters,
    batch::Batch,
    forward::Forwarder,
    io::Io,
    listener::Listener,
    raw::RawReplies,
    readiness::{Readiness, Ready, Token},
    relay::{Books, Given, Relay},
};
use crate::{
    family::Family,
    flows::FlowTable,
    generation::Generations,
    intercept::Said,
    live::LiveCount,
    mark::Mark,
    socket::{self, IcmpSender, RawSender, SocketError},
    way::{Routing, Ways},
};

/// Between two looks for sessions that have ended by silence.
const SWEEP: Duration = Duration::from_secs(1);

/// Sessions ended in one go; closing their sockets takes time that others wait.
const SWEPT_AT_ONCE: usize = 64;

/// Sockets dealt with before the runtime has its turn.
const TURN: usize = 32;

/// What those who have taken sessions may have said that was not yet heard; then they wait.
const SAID: usize = 1024;

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
    forwarder: Forwarder,
    batch: Batch,
    flows: Arc<FlowTable>,
    gone: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    /// What is said by those who have taken sessions.
    said: mpsc::Receiver<Said>,
    draining: CancellationToken,
}

impl Service {
    /// To be called inside the worker's runtime.
    pub(crate) fn new(setup: Setup, live: LiveCount, draining: CancellationToken) -> io::Result<Self> {
        let Setup { sockets, bound, generations, workers, mark, routing, endpoints, memory, counters, flows } =
            setup;
        let books = Books { counters: Arc::clone(&counters), flows: Arc::clone(&flows), live };
        let mut relay = Relay::new(Given { bound, generations, workers, endpoints, books }, Instant::now());
        let readiness = Readiness::new()?;
        let watch = readiness.watch();
        let (mut listeners, mut raws, mut icmps) = (Vec::new(), Vec::new(), Vec::new());
        for Sockets { family, listener, raw, icmp } in sockets {
            watch.add(&listener, Token::Listener(family))?;
            relay.listens(family, listener.recv_buffer_size()?);
            listeners.push(Listener::new(family, listener));
            raws.push((family, raw));
            icmps.push((family, icmp));
        }
        let gone = routing.gone();
        let ways = Ways::new(routing, mark);
        let (takers, said) = mpsc::channel(SAID);
        let io = Io::new(memory, ways, RawReplies(raws), icmps, watch, (mark, counters), takers);
        let forwarder = Forwarder { relay, io };
        Ok(Self { listeners, readiness, forwarder, batch: Batch::new(), flows, gone, said, draining })
    }

    /// Serves for ever, on the worker's thread. When it is dropped, the sessions end.
    pub(crate) async fn serve(mut self) -> Infallible {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweeping = false;
        let mut attended = 0;
        loop {
            let is_waited_for =
                self.listeners.iter().any(|listener| self.forwarder.relay.waits_for(listener.family()));
            tokio::select! {
                () = self.readiness.wait() => {
                    while let Some((token, told)) = self.readiness.take() {
                        self.attend(token, told);
                        attended += 1;
                    }
                }
                _ = sweep.tick() => {
                    self.forwarder.relay.adopt_limits(Instant::now());
                    let stranded = self.forwarder.relay.look_again();
                    self.forwarder.move_on(stranded);
                    self.forwarder.give_back(&mut self.batch, Instant::now());
                    sweeping = true;
                }
                Ok(()) = self.gone.changed() => {
                    let gone = Arc::clone(&self.gone.borrow_and_update());
                    let stranded = self.forwarder.relay.hear(gone);
                    self.forwarder.move_on(stranded);
                }
                Some(said) = self.said.recv() => {
                    let now = Instant::now();
                    self.forwarder.hear(said, now);
                    self.settle(now);
                    attended += 1;
                }
                () = self.flows.closing() => {
                    let now = Instant::now();
                    self.forwarder.relay.end_closing(now);
                    self.forwarder.carry_out(now);
                }
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
        let more = (0..SWEPT_AT_ONCE).all(|_| self.forwarder.sweep(draining, &mut self.batch, now));
        self.settle(now);
        more
    }

    /// Reads listeners that sessions wait for. If there is nothing in them, nobody else says so.
    fn read_on(&mut self) {
        let now = Instant::now();
        for listener in &mut self.listeners {
            if self.forwarder.relay.waits_for(listener.family()) {
                listener.receive(&mut self.forwarder, now);
            }
        }
        self.settle(now);
    }

    fn attend(&mut self, token: Token, told: Ready) {
        let now = Instant::now();
        if told == Ready::Error {
            self.forwarder.look_at_errors(token, now);
        }
        match token {
            Token::Listener(family) => {
                let listener = self.listeners.iter_mut().find(|listener| listener.family() == family);
                listener.expect("it was registered").receive(&mut self.forwarder, now);
            }
            Token::Client(id) => self.forwarder.read_client(id, &mut self.batch, now),
            Token::Upstream(id) => self.forwarder.read_upstream(id, &mut self.batch, now),
            Token::Mapping(index) => self.forwarder.read_mapping(index, &mut self.batch, now),
        }
        self.settle(now);
    }

    /// What came to light while datagrams were moved.
    fn settle(&mut self, now: Instant) {
        self.forwarder.carry_out(now);
        self.forwarder.end_answered(&mut self.batch, now);
    }
}
