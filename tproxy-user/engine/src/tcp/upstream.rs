//! Preparing the upstream: connecting, by which source and way the rule wants, and what is said before the relay begins.

use std::{fmt, io, net::SocketAddr};

use rustix::io::Errno;
use socket2::Socket;
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tproxy_common::flow::Protocol;

use super::{
    End,
    connection::{Connection, Ended, client_failed, pending_error},
    dialogue::{Dialogue, Told},
    service::Shared,
};
use crate::{
    config::Credentials,
    family::Family,
    flow::{ClientAddr, OriginalDst},
    host::connections,
    socket::{self, SocketError},
    source::Sources,
    upstreams::{Pool, Server, Use},
    way::First,
};

/// An upstream that stands for the original destination: from now on it is only relayed.
pub(super) struct Upstream {
    stream: TcpStream,
    /// The server's.
    address: SocketAddr,
    /// That one of several is used.
    used: Option<Use>,
}

impl Upstream {
    /// What is left to be kept, once it was said where it is.
    pub(super) fn announced(self, connection: &mut Connection) -> TcpStream {
        connection.announce(Some(self.address), Some(&self.stream));
        connection.used = self.used;
        self.stream
    }
}

/// There is none.
pub(super) struct NoUpstream {
    pub(super) ended: Ended,
    /// The last that was tried.
    pub(super) address: Option<SocketAddr>,
}

impl NoUpstream {
    fn at(address: SocketAddr, ended: impl Into<Ended>) -> Self {
        Self { ended: ended.into(), address: Some(address) }
    }
}

/// Prepares the upstream of a connection as its rule has it, within the time that there is for it. Gives up when the client
/// resets its connection meanwhile, if it was accepted; that it has no more to send is no reason.
///
/// # Errors
/// How the connection ended, therefore.
pub(super) async fn prepare(
    client: Option<&TcpStream>,
    connection: &Connection,
) -> Result<Upstream, NoUpstream> {
    let deadline = Instant::now() + connection.connect_timeout();
    let prepared = tokio::select! {
        biased;
        ended = failure_of(client) => return Err(NoUpstream { ended, address: None }),
        prepared = by_rule(client, connection, deadline) => prepared,
    };
    match prepared {
        Ok(_) => connection.shared.counters.connect_latency.observe(connection.live.began().elapsed()),
        // The next client is told before it is accepted.
        Err(_) => connection.shared.decisions.borrow_mut().unreached(connection.dst()),
    }
    prepared
}

async fn by_rule(
    client: Option<&TcpStream>,
    connection: &Connection,
    deadline: Instant,
) -> Result<Upstream, NoUpstream> {
    if let Some(pool) = connection.pool() {
        return Box::pin(by_pool(pool, client, connection, deadline)).await;
    }
    let address = connection.rule().treatment.action.peer(connection.dst());
    let speaks_at_once = client.is_some_and(socket::has_data);
    match connect_until(deadline, address, speaks_at_once, connection).await {
        Ok(stream) => Ok(Upstream { stream, address, used: None }),
        Err(ended) => Err(NoUpstream::at(address, ended)),
    }
}

/// By one server after the other, until one connects, or says that it does not: each has its share of the time that is left.
async fn by_pool(
    pool: &Pool,
    client: Option<&TcpStream>,
    connection: &Connection,
    deadline: Instant,
) -> Result<Upstream, NoUpstream> {
    let mut last = NoUpstream { ended: End::UpstreamUnresolved.into(), address: None };
    let servers = pool.in_order(connection.client().0.ip());
    for (left, server) in (1..=servers.len()).rev().zip(servers) {
        match by_server(server, pool.credentials(), client, connection, share(deadline, left)).await {
            Ok(upstream) => return Ok(Upstream { used: Some(server.used()), ..upstream }),
            Err(Failure { no_upstream, of: FailureOf::Destination }) => return Err(no_upstream),
            Err(Failure { no_upstream, of: FailureOf::Flow }) => last = no_upstream,
            Err(Failure { no_upstream, of: FailureOf::Server }) => {
                server.lost(no_upstream.ended.error.as_deref().unwrap_or_default());
                last = no_upstream;
            }
        }
    }
    Err(last)
}

/// When the next of so many has to be done.
fn share(deadline: Instant, left: usize) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / u32::try_from(left).unwrap_or(u32::MAX)
}

/// A server does not stand for the original destination.
struct Failure {
    no_upstream: NoUpstream,
    of: FailureOf,
}

/// What a failure says something of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FailureOf {
    /// The server is not there, or not as it should be.
    Server,
    /// It is there, and says so: another would not do better.
    Destination,
    /// It cannot serve this flow, and may others.
    Flow,
}

async fn by_server(
    server: &Server,
    credentials: Option<&Credentials>,
    client: Option<&TcpStream>,
    connection: &Connection,
    deadline: Instant,
) -> Result<Upstream, Failure> {
    let (url, begun) = (server.url(), Instant::now());
    let connected = |stream, address| {
        server.succeeded(begun.elapsed());
        Ok(Upstream { stream, address, used: None })
    };
    let failure = |address, end, error: &dyn fmt::Display, kind, of| Failure {
        no_upstream: NoUpstream {
            ended: Ended { end, error: Some(format!("{url}: {error}")), kind },
            address,
        },
        of,
    };
    let unresolved =
        |error: &dyn fmt::Display| failure(None, End::UpstreamUnresolved, error, None, FailureOf::Server);
    let addresses = match timeout_at(deadline, server.addresses()).await {
        Ok(addresses) => addresses.map_err(|error| unresolved(&error))?,
        Err(_elapsed) => return Err(unresolved(&"its name was not resolved in time")),
    };
    // Only one family has the client's address.
    let client_family = Family::of(connection.client().0.ip());
    let is_spoofed = connection.rule().treatment.is_spoofed();
    let addresses = addresses.iter().filter(|to| !is_spoofed || Family::of(to.ip()) == client_family);
    let told = Told { id: connection.live.id(), client: connection.client(), dst: connection.dst() };
    let unfit = "it has no address of the client's family, as the client's own address needs";
    let mut last = failure(None, End::ConnectFailed, &unfit, None, FailureOf::Flow);
    for (left, address) in (1..=addresses.clone().count()).rev().zip(addresses) {
        let deadline = share(deadline, left);
        let dialogue = Dialogue::of(url.scheme, &told, credentials);
        let speaks_at_once = dialogue.is_some() || client.is_some_and(socket::has_data);
        let mut stream = match connect_until(deadline, *address, speaks_at_once, connection).await {
            Ok(stream) => stream,
            Err(Ended { end, error, kind }) => {
                let error = error.unwrap_or_else(|| "no answer in time".to_owned());
                last = failure(Some(*address), end, &error, kind, FailureOf::Server);
                continue;
            }
        };
        let Some(dialogue) = dialogue else { return connected(stream, *address) };
        match timeout_at(deadline, dialogue.hold(&mut stream)).await {
            Ok(Ok(())) => return connected(stream, *address),
            Ok(Err(error)) => {
                let of = if error.is_verdict() { FailureOf::Destination } else { FailureOf::Server };
                last = failure(Some(*address), error.end(), &error, error.kind(), of);
            }
            Err(_elapsed) => {
                let error = "it was connected, and did not answer in time";
                last = failure(Some(*address), End::UpstreamSilent, &error, None, FailureOf::Server);
            }
        }
        if last.of == FailureOf::Destination {
            break;
        }
    }
    Err(last)
}

/// Connects for a client, from the source that its rule wants.
async fn connect_until(
    deadline: Instant,
    address: SocketAddr,
    speaks_at_once: bool,
    connection: &Connection,
) -> Result<TcpStream, Ended> {
    match timeout_at(deadline, connect(address, speaks_at_once, connection)).await {
        Ok(connected) => Ok(connected?),
        Err(_elapsed) => Err(End::ConnectTimeout.into()),
    }
}

async fn connect(
    address: SocketAddr,
    speaks_at_once: bool,
    connection: &Connection,
) -> Result<TcpStream, ConnectError> {
    // Where the kernel cannot say, the odds are what they are.
    let is_clients = |theirs| connections::exists(Protocol::Tcp, address, theirs).unwrap_or(false);
    let mut sources = Sources::towards(
        Some(address.ip()),
        connection.rule(),
        connection.client(),
        &connection.shared.ways.borrow(),
        &connection.shared.counters.source_fallbacks,
    );
    let mut source = sources.first(is_clients);
    let first = First {
        protocol: Protocol::Tcp,
        client: connection.client(),
        dst: connection.dst(),
        to: address,
        origin: &connection.arrived().origin,
        class: connection.arrived().class,
    };
    let egress = connection.shared.ways.borrow_mut().egress(connection.rule(), &first);
    let egress = egress.map_err(ConnectError::Connect)?;
    loop {
        let socket = socket::upstream(address, source, egress);
        let socket = socket.inspect(|socket| {
            // Else it leaves with another one, and arrives all the same.
            let _ = socket::set_class(socket, Family::of(address.ip()), connection.arrived().class);
            if speaks_at_once {
                socket::join_ack_with_data(socket)
            }
        });
        let connected = match socket {
            Ok(socket) => handshake(socket, address, &connection.shared).await.map_err(ConnectError::Connect),
            Err(error) => Err(ConnectError::Socket(error)),
        };
        match connected {
            Err(error) if error.is_taken() => {
                match sources.next(&connection.shared.counters.source_fallbacks, is_clients) {
                    Some(another) => source = another,
                    None => return Err(error),
                }
            }
            connected => return connected,
        }
    }
}

async fn failure_of(client: Option<&TcpStream>) -> Ended {
    match client {
        Some(client) => {
            // What is ready with an error, or cannot be asked, has failed.
            let _ = client.ready(Interest::ERROR).await;
            client_failed(&pending_error(client))
        }
        None => std::future::pending().await,
    }
}

/// As connect(2), which is under way as soon as it is called: not before does it say from which port.
pub(super) async fn handshake(
    socket: Socket,
    upstream: SocketAddr,
    shared: &Shared,
) -> io::Result<TcpStream> {
    let begun = socket.connect(&upstream.into());
    // Whatever becomes of the handshake, it is dropped after the stream.
    let _remembered = OwnHandshake::of(&socket, upstream, shared);
    match begun {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::INPROGRESS) => return Err(error),
        _ => {}
    }
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    stream.take_error()?.map_or(Ok(stream), Err)
}

/// The datapath remembers a connection of ours to this host as such, by the first packet. Once its handshake is over,
/// connected or not, the client itself may come from the same port, and is not to be taken for us.
struct OwnHandshake<'a> {
    own: SocketAddr,
    upstream: SocketAddr,
    shared: &'a Shared,
}

impl<'a> OwnHandshake<'a> {
    fn of(socket: &Socket, upstream: SocketAddr, shared: &'a Shared) -> Option<Self> {
        if !shared.generations.decider().is_host_address(upstream.ip()) {
            return None;
        }
        let own = socket.local_addr().ok()?.as_socket()?;
        Some(Self { own, upstream, shared })
    }
}

impl Drop for OwnHandshake<'_> {
    fn drop(&mut self) {
        self.shared.decisions.borrow_mut().take(ClientAddr(self.own), OriginalDst(self.upstream));
    }
}

#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error(transparent)]
    Socket(SocketError),
    #[error(transparent)]
    Connect(io::Error),
}

impl ConnectError {
    /// Whether another source port may do.
    fn is_taken(&self) -> bool {
        match self {
            Self::Socket(error) => {
                matches!(error, SocketError::Taken { .. } | SocketError::NotOwn { .. })
            }
            // The very 4-tuple is in use, perhaps by a connection in TIME_WAIT.
            Self::Connect(error) => error.kind() == io::ErrorKind::AddrNotAvailable,
        }
    }

    fn end(&self) -> End {
        use io::ErrorKind::{
            ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable,
            PermissionDenied, TimedOut,
        };
        match self {
            Self::Socket(_) => End::ConnectFailed,
            Self::Connect(error) => match error.kind() {
                ConnectionRefused => End::ConnectRefused,
                ConnectionReset => End::UpstreamReset,
                ConnectionAborted => End::AddressGone,
                TimedOut => End::ConnectTimeout,
                // A `prohibit` route or a firewall of this host denies permission.
                HostUnreachable | NetworkUnreachable | PermissionDenied => End::Unreachable,
                _ => End::ConnectFailed,
            },
        }
    }
}

impl From<ConnectError> for Ended {
    fn from(error: ConnectError) -> Self {
        let kind = match &error {
            ConnectError::Connect(error) => Some(error.kind()),
            ConnectError::Socket(_) => None,
        };
        Self { end: error.end(), error: Some(error.to_string()), kind }
    }
}
