//! Connecting before accepting: the datapath hands over the first packet of a connection, the upstream is connected, and only
//! then the packet is sent in, for the kernel to answer. Where there is no upstream, the client is told what we were told.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    convert::Infallible,
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tproxy_common::{abi::Origin, packet};

use super::{
    End,
    connection::{Arrived, Connection, Ended, place, refuse},
    service::Shared,
    session,
    upstream::{self, NoUpstream, Upstream},
};
use crate::{
    config::Scope,
    family::Family,
    flow::{ClientAddr, OriginalDst},
    generation::RuleNumber,
    socket::{self, IcmpError, ReadableFd, SynSender, TrafficClass},
};

/// First packets that a worker has at once; further connections are accepted at once.
const MOST: usize = 1024;

/// Those of one client among them: addresses are feigned more easily than connections are made.
const MOST_OF_A_CLIENT: usize = MOST / 4;

/// First packets on their way to a worker.
const WAITING: usize = 256;

/// How long a client may take to complete a handshake whose first packet has been held, before the upstream is let go.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// For a first packet that was sent in to reach its listener.
const ON_ITS_WAY: Duration = Duration::from_millis(100);

/// For how long a destination that was reached is taken for one that can be. An application of this host costs little to ask,
/// and probes look whether it is there.
const fn reached_for(scope: Scope) -> Duration {
    match scope {
        Scope::Forwarded | Scope::Outbound => Duration::from_secs(60),
        Scope::Inbound => Duration::from_secs(1),
    }
}

/// The first packet of a connection that is not accepted yet.
#[derive(Debug)]
pub struct Syn {
    /// Who sent it.
    pub client: ClientAddr,
    /// Where to.
    pub dst: OriginalDst,
    /// The rule that selected the flow.
    pub rule: RuleNumber,
    /// The worker that is to have it.
    pub worker: u32,
    /// How it came.
    pub origin: Origin,
    /// Its Ethernet header; of a device that has none, nothing.
    pub link: Option<[u8; 14]>,
    /// All of it, from its IP header on.
    pub packet: Vec<u8>,
    /// Where its TCP header begins.
    pub l4: usize,
}

/// Where the datapath puts first packets.
pub trait SynSource: Send {
    /// The next, if there is one.
    fn next(&mut self) -> Option<Syn>;
    /// Readable when there is one.
    ///
    /// # Errors
    /// For lack of descriptors.
    fn descriptor(&self) -> io::Result<OwnedFd>;
}

/// How first packets get to a worker: one of the workers takes those of all from the datapath.
pub struct Syns {
    source: Option<Box<dyn SynSource>>,
    workers: Vec<mpsc::Sender<Syn>>,
    own: mpsc::Receiver<Syn>,
}

impl Syns {
    /// For each of some workers.
    #[must_use]
    pub fn of_workers(workers: usize, source: Box<dyn SynSource>) -> Vec<Self> {
        let mut source = Some(source);
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..workers).map(|_| mpsc::channel(WAITING)).unzip();
        let syns = |own| Self { source: source.take(), workers: senders.clone(), own };
        receivers.into_iter().map(syns).collect()
    }

    /// Whether the worker that has these takes those of all from the datapath.
    pub(super) const fn are_of_all(&self) -> bool {
        self.source.is_some()
    }
}

/// The connections of a worker whose first packets are held.
#[derive(Default)]
pub(super) struct Holding {
    held: HashSet<(ClientAddr, OriginalDst)>,
    clients: HashMap<IpAddr, usize>,
    /// Their upstreams are connected, and the handshakes with their clients under way.
    prepared: HashMap<(ClientAddr, OriginalDst), Prepared>,
}

/// A connection whose upstream is there already.
pub(super) struct Prepared {
    connection: Connection,
    upstream: Upstream,
    /// Dropped when the connection is accepted.
    _awaited: oneshot::Sender<()>,
}

/// Serves what is held, for ever.
pub(super) async fn serve(syns: Syns, shared: Rc<Shared>) -> Infallible {
    let Syns { source, workers, mut own } = syns;
    if let Some(source) = source {
        let shared = Rc::clone(&shared);
        tokio::task::spawn_local(async move {
            // Without it first packets are accepted at once when the ring is full, and until then sent again.
            let Err(error) = take_from(source, &workers, &shared).await;
            tracing::error!(%error, "cannot take first packets from the datapath");
        });
    }
    let senders = Rc::new(RefCell::new(SynSender::new(shared.mark)));
    loop {
        match own.recv().await {
            Some(syn) => begin(syn, &shared, &senders),
            // The others' senders are gone with their threads; so this worker will soon be.
            None => std::future::pending().await,
        }
    }
}

async fn take_from(
    mut source: Box<dyn SynSource>,
    workers: &[mpsc::Sender<Syn>],
    shared: &Shared,
) -> io::Result<Infallible> {
    let readable = ReadableFd::new(Arc::new(source.descriptor()?))?;
    loop {
        let mut ready = readable.ready().await?;
        while let Some(syn) = source.next() {
            let (client, dst) = (syn.client, syn.dst);
            let sent = workers.get(syn.worker as usize).is_some_and(|worker| worker.try_send(syn).is_ok());
            if !sent {
                // The client sends it again.
                shared.decisions.borrow_mut().release(client, dst);
            }
        }
        ready.clear_ready();
    }
}

type Senders = Rc<RefCell<SynSender>>;

fn begin(syn: Syn, shared: &Rc<Shared>, senders: &Senders) {
    let (client, dst) = (syn.client, syn.dst);
    let Some(place_held) = Held::new(shared, client, dst) else { return };
    let Some(rule) = shared.generations.rule(syn.rule) else { return };
    if packet::is_signed(&syn.packet[..], syn.l4) {
        return leave_alone(syn, shared, senders);
    }
    if place_held.is_one_too_many() {
        return let_in(&syn, shared, senders);
    }
    shared.counters.accepted.fetch_add(1, Relaxed);
    let Some(place) = place(shared, &rule, client, dst) else {
        answer(&syn, &End::OverLimit.into(), senders);
        return refuse(shared, client, dst, End::OverLimit);
    };
    let arrived = Arrived { class: TrafficClass::of_packet(&syn.packet), origin: syn.origin };
    let connection = Connection::new(Rc::clone(shared), client, dst, rule, arrived, place);
    let flow = connection.live.share();
    let (shared, senders) = (Rc::clone(shared), Rc::clone(senders));
    let task = async move { Box::pin(prepare(syn, connection, place_held, shared, senders)).await };
    flow.served_by(tokio::task::spawn_local(task).abort_handle());
}

/// Connects to the upstream, then lets the client in, and waits until it is.
async fn prepare(syn: Syn, mut connection: Connection, held: Held, shared: Rc<Shared>, senders: Senders) {
    let (client, dst) = (syn.client, syn.dst);
    match upstream::prepare(None, &connection).await {
        Ok(upstream) => {
            shared.decisions.borrow_mut().reached(dst, reached_for(connection.rule().reach.scope));
            let (_awaited, accepted) = oneshot::channel();
            let prepared = Prepared { connection, upstream, _awaited };
            shared.holding.borrow_mut().prepared.insert((client, dst), prepared);
            let_in(&syn, &shared, &senders);
            drop((syn, held));
            // Nothing is ever sent: either it is accepted, or it is not.
            if timeout(HANDSHAKE, accepted).await.is_err()
                && let Some(mut prepared) = shared.holding.borrow_mut().prepared.remove(&(client, dst))
            {
                prepared.connection.ended(End::ClientLost.into());
            }
        }
        Err(NoUpstream { ended, address }) => {
            drop(held);
            answer(&syn, &ended, &senders);
            connection.announce(address, None);
            connection.ended(ended);
        }
    }
}

/// Only the application has the key that a connection is signed with. `sk_lookup` does not see that it is; tc does.
fn leave_alone(syn: Syn, shared: &Rc<Shared>, senders: &Senders) {
    tracing::info!(client = %syn.client, dst = %syn.dst, "passed: it is signed (TCP MD5, TCP-AO)");
    shared.decisions.borrow_mut().leave_alone(&syn);
    send_in(&syn, shared, senders);
    let shared = Rc::clone(shared);
    tokio::task::spawn_local(async move {
        sleep(ON_ITS_WAY).await;
        // What is not signed and has the same addresses and ports does not get by after it.
        shared.decisions.borrow_mut().take(syn.client, syn.dst);
    });
}

/// Has the kernel answer the client.
fn let_in(syn: &Syn, shared: &Shared, senders: &Senders) {
    shared.decisions.borrow_mut().admit(syn);
    send_in(syn, shared, senders);
}

fn send_in(syn: &Syn, shared: &Shared, senders: &Senders) {
    shared.decisions.borrow_mut().release(syn.client, syn.dst);
    if let Err(error) = senders.borrow_mut().let_in(syn.client, syn.dst, syn.link, &syn.packet, syn.l4) {
        // The client sends it again, and is admitted.
        tracing::debug!(client = %syn.client, dst = %syn.dst, %error, "a first packet was lost");
    }
}

/// Tells the client what the upstream, or the way to it, has told us. One that is silent, we are, too.
fn answer(syn: &Syn, ended: &Ended, senders: &Senders) {
    use io::ErrorKind::{NetworkUnreachable, PermissionDenied};
    let mut senders = senders.borrow_mut();
    let sent = match (ended.end, ended.kind) {
        (End::ConnectTimeout | End::UpstreamSilent | End::Stopped | End::Closed, _) => Ok(()),
        (End::Unreachable, kind) => {
            let error = match kind {
                Some(NetworkUnreachable) => IcmpError::NetUnreachable,
                Some(PermissionDenied) => IcmpError::AdminProhibited,
                _ => IcmpError::HostUnreachable,
            };
            senders.unreachable(error, syn.client, syn.dst, &syn.packet)
        }
        _ => senders.reset(syn.client, syn.dst, &syn.packet, syn.l4),
    };
    if let Err(error) = sent {
        tracing::debug!(client = %syn.client, dst = %syn.dst, %error, "a client could not be answered");
    }
}

impl Prepared {
    /// Relays the connection that was accepted.
    pub(super) fn begin(self, client: TcpStream) {
        let Self { connection, upstream, .. } = self;
        // It fails for no socket of ours.
        let _ =
            socket::set_class(&client, Family::of(connection.client().0.ip()), connection.arrived().class);
        let flow = connection.live.share();
        flow.served_by(
            tokio::task::spawn_local(session::resume(client, upstream, connection)).abort_handle(),
        );
    }
}

impl Holding {
    /// What was prepared for a connection.
    pub(super) fn take(&mut self, client: ClientAddr, dst: OriginalDst) -> Option<Prepared> {
        self.prepared.remove(&(client, dst))
    }
}

/// A first packet that a worker has; the datapath keeps the client's repetitions away for as long.
struct Held {
    shared: Rc<Shared>,
    flow: (ClientAddr, OriginalDst),
}

impl Held {
    /// Nothing, if the worker has it already.
    fn new(shared: &Rc<Shared>, client: ClientAddr, dst: OriginalDst) -> Option<Self> {
        let mut holding = shared.holding.borrow_mut();
        if holding.prepared.contains_key(&(client, dst)) || !holding.held.insert((client, dst)) {
            return None;
        }
        *holding.clients.entry(client.0.ip()).or_default() += 1;
        Some(Self { shared: Rc::clone(shared), flow: (client, dst) })
    }

    fn is_one_too_many(&self) -> bool {
        let holding = self.shared.holding.borrow();
        let of_client = holding.clients.get(&self.flow.0.0.ip()).copied().unwrap_or_default();
        holding.held.len() > MOST || of_client > MOST_OF_A_CLIENT
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (client, dst) = self.flow;
        self.shared.decisions.borrow_mut().release(client, dst);
        let mut holding = self.shared.holding.borrow_mut();
        holding.held.remove(&(client, dst));
        if let Some(count) = holding.clients.get_mut(&client.0.ip()) {
            *count -= 1;
            if *count == 0 {
                holding.clients.remove(&client.0.ip());
            }
        }
    }
}
