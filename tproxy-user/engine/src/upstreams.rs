//! The servers of upstreams while an instance runs: what is known of them, for all workers.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, oneshot};

use crate::config::{Action, Host, Rule, Upstream, UpstreamGroup, UpstreamServer};

/// For how long a name is taken to have the addresses that it had; the resolver does not say for how long it has.
const RESOLVED_ANEW: Duration = Duration::from_secs(60);

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

    pub(crate) fn of_rule(&self, index: usize) -> Option<&Arc<Pool>> {
        self.0.get(index)?.as_ref()
    }
}

/// The servers of an upstream.
#[derive(Debug)]
pub struct Pool {
    group: Arc<UpstreamGroup>,
    servers: Box<[Server]>,
}

impl Pool {
    fn of(group: &Arc<UpstreamGroup>) -> Self {
        let server = |url: &UpstreamServer| Server { url: url.clone(), resolved: Mutex::default() };
        Self { group: Arc::clone(group), servers: group.servers.iter().map(server).collect() }
    }

    /// Its servers, in the order in which they are to be tried.
    pub(crate) fn in_order(&self) -> impl ExactSizeIterator<Item = &Server> {
        self.servers.iter()
    }
}

/// One of them.
#[derive(Debug)]
pub struct Server {
    url: UpstreamServer,
    /// Held while the name is asked for, so that one asks for all.
    resolved: Mutex<Option<Resolved>>,
}

/// The addresses that a name had.
#[derive(Debug)]
struct Resolved {
    at: Instant,
    addresses: Arc<[SocketAddr]>,
}

impl Server {
    pub(crate) const fn url(&self) -> &UpstreamServer {
        &self.url
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
