//! The servers of upstreams while an instance runs: what is known of them, for all workers.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::config::{Action, Credentials, Host, Pick, Rule, Upstream, UpstreamGroup, UpstreamServer};

/// For how long a name is taken to have the addresses that it had; the resolver does not say for how long it has.
const RESOLVED_ANEW: Duration = Duration::from_secs(60);

/// For how long one that failed is left out where nobody looks whether it is there again.
const RETRY: Duration = Duration::from_secs(10);

/// The servers of each rule, by its place among the rules. Those that say the same share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pools(Arc<[Option<Arc<Pool>>]>);

impl Pools {
    /// Those of `rules`; what was known of them `earlier` still is.
    pub(crate) fn of(rules: &[Rule], earlier: Option<&Self>) -> Self {
        let earlier = earlier.into_iter().flat_map(|pools| pools.0.iter().flatten());
        let mut known: HashMap<_, _> =
            earlier.map(|pool| (Arc::clone(&pool.group), Arc::clone(pool))).collect();
        let mut pool = |rule: &Rule| {
            let Action::Upstream(Upstream::Group(group)) = &rule.treatment.action else { return None };
            let pool = known.entry(Arc::clone(group)).or_insert_with(|| Arc::new(Pool::of(group)));
            Some(Arc::clone(pool))
        };
        Self(rules.iter().map(&mut pool).collect())
    }

    /// Each once.
    pub(crate) fn all(&self) -> Vec<Arc<Pool>> {
        let mut all: Vec<Arc<Pool>> = Vec::new();
        for pool in self.0.iter().flatten() {
            if !all.iter().any(|known| Arc::ptr_eq(known, pool)) {
                all.push(Arc::clone(pool));
            }
        }
        all
    }

    pub(crate) fn of_rule(&self, index: usize) -> Option<&Arc<Pool>> {
        self.0.get(index)?.as_ref()
    }
}

/// The servers of an upstream.
#[derive(Debug)]
pub struct Pool {
    group: Arc<UpstreamGroup>,
    servers: Box<[Arc<Server>]>,
    turn: AtomicUsize,
}

impl Pool {
    fn of(group: &Arc<UpstreamGroup>) -> Self {
        let server = |url: &UpstreamServer| Arc::new(Server::at(url.clone()));
        let servers = group.servers.iter().map(server).collect();
        Self { group: Arc::clone(group), servers, turn: AtomicUsize::new(0) }
    }

    /// What it is made of.
    #[must_use]
    pub fn group(&self) -> &UpstreamGroup {
        &self.group
    }

    /// Its servers, in the order of the configuration.
    #[must_use]
    pub const fn servers(&self) -> &[Arc<Server>] {
        &self.servers
    }

    pub(crate) fn credentials(&self) -> Option<&Credentials> {
        self.group.credentials.as_ref()
    }

    /// Its servers, in the order in which they are to be tried for a client. One that failed comes last: where all have, there is
    /// nothing to lose.
    pub(crate) fn in_order(&self, client: IpAddr) -> Vec<&Arc<Server>> {
        let mut servers: Vec<_> = self.servers.iter().collect();
        match self.group.pick {
            Pick::First => {}
            Pick::RoundRobin => {
                let turn = self.turn.fetch_add(1, Relaxed);
                servers.rotate_left(turn % self.servers.len().max(1));
            }
            Pick::Least => servers.sort_by_key(|server| server.live()),
            // Without one of them, only its own clients go elsewhere (rendezvous hashing).
            Pick::Hash => servers.sort_by_cached_key(|server| hash_of(client, &server.url)),
        }
        let retry = self.group.check.map_or(Some(RETRY), |_| None);
        servers.sort_by_cached_key(|server| server.is_out(retry));
        servers
    }
}

/// The same in each process.
fn hash_of(client: IpAddr, url: &UpstreamServer) -> u64 {
    let mut hasher = DefaultHasher::new();
    (client, url).hash(&mut hasher);
    hasher.finish()
}

/// One of them.
#[derive(Debug)]
pub struct Server {
    url: UpstreamServer,
    /// Held while the name is asked for, so that one asks for all.
    resolved: tokio::sync::Mutex<Option<Resolved>>,
    health: Mutex<ServerHealth>,
    live: AtomicU64,
    connected: AtomicU64,
    failed: AtomicU64,
}

/// What is known of a server.
#[derive(Debug, Clone, Default)]
pub struct ServerHealth {
    /// How long it took of late until it stood for a destination, or was looked at; none, while it never did.
    pub latency: Option<Duration>,
    /// Since when it fails, and how.
    pub failing: Option<(Instant, Arc<str>)>,
}

/// The addresses that a name had.
#[derive(Debug)]
struct Resolved {
    at: Instant,
    addresses: Arc<[SocketAddr]>,
}

impl Server {
    fn at(url: UpstreamServer) -> Self {
        let counter = || AtomicU64::new(0);
        let (resolved, health) = Default::default();
        Self { url, resolved, health, live: counter(), connected: counter(), failed: counter() }
    }

    /// What it is told, and where it is.
    #[must_use]
    pub const fn url(&self) -> &UpstreamServer {
        &self.url
    }

    /// How it is.
    #[must_use]
    pub fn health(&self) -> ServerHealth {
        self.lock().clone()
    }

    /// Flows that go by it at the moment.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.live.load(Relaxed)
    }

    /// Flows that went by it, and that would have gone by it if it had not failed.
    #[must_use]
    pub fn flows(&self) -> [u64; 2] {
        [&self.connected, &self.failed].map(|count| count.load(Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, ServerHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it failed, and that is not yet so long ago that it may be tried again.
    fn is_out(&self, retry: Option<Duration>) -> bool {
        let failing = |(since, _): &(Instant, Arc<str>)| retry.is_none_or(|retry| since.elapsed() < retry);
        self.lock().failing.as_ref().is_some_and(failing)
    }

    /// It is there, as was seen within this time.
    pub fn succeeded(&self, within: Duration) {
        let mut health = self.lock();
        // As TCP smooths its round-trip times (RFC 6298).
        health.latency = Some(health.latency.map_or(within, |before| (7 * before + within) / 8));
        if health.failing.take().is_some() {
            tracing::info!(server = %self.url, "an upstream is there again");
        }
    }

    /// It does not answer, or not as it should.
    pub(crate) fn failed(&self, error: &str) {
        let mut health = self.lock();
        if health.failing.is_none() {
            tracing::warn!(server = %self.url, error, "an upstream fails, and is left out where there are others");
        }
        health.failing = Some((Instant::now(), error.into()));
    }

    /// A flow would have gone by it, but for this.
    pub(crate) fn lost(&self, error: &str) {
        self.failed.fetch_add(1, Relaxed);
        self.failed(error);
    }

    /// A flow goes by it.
    pub(crate) fn used(self: &Arc<Self>) -> Use {
        self.connected.fetch_add(1, Relaxed);
        self.live.fetch_add(1, Relaxed);
        Use(Arc::clone(self))
    }

    /// Where it is, at one address or more.
    ///
    /// # Errors
    /// The resolver's, where the name never had one.
    pub(crate) async fn addresses(&self) -> io::Result<Arc<[SocketAddr]>> {
        let name = match &self.url.host {
            Host::Address(address) => return Ok([SocketAddr::new(*address, self.url.port)].into()),
            Host::Name(name) => name,
        };
        let mut resolved = self.resolved.lock().await;
        if let Some(known) = &*resolved
            && known.at.elapsed() < RESOLVED_ANEW
        {
            return Ok(Arc::clone(&known.addresses));
        }
        match (resolve(Arc::clone(name), self.url.port).await, &*resolved) {
            (Ok(addresses), _) if !addresses.is_empty() => {
                *resolved = Some(Resolved { at: Instant::now(), addresses: Arc::clone(&addresses) });
                Ok(addresses)
            }
            // A resolver that is away for a while does not take the upstream along.
            (_, Some(known)) => {
                tracing::warn!(name = &**name, "the name has no address any more, or cannot be asked for");
                Ok(Arc::clone(&known.addresses))
            }
            (Ok(_), None) => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
            (Err(error), None) => Err(error),
        }
    }
}

/// That a flow goes by a server.
#[derive(Debug)]
pub(crate) struct Use(Arc<Server>);

impl Drop for Use {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Relaxed);
    }
}

/// Asks as any program of this host does, getaddrinfo(3). That may take as long as it likes, and has a thread of its own, for
/// which nobody waits in the end, as would a runtime.
async fn resolve(name: Arc<str>, port: u16) -> io::Result<Arc<[SocketAddr]>> {
    let (sender, receiver) = oneshot::channel();
    let ask = move || {
        let found = (&*name, port).to_socket_addrs().map(Iterator::collect);
        // Whoever asked may not wait any more.
        let _ = sender.send(found);
    };
    thread::Builder::new().name("resolver".to_owned()).spawn(ask)?;
    receiver.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests;
