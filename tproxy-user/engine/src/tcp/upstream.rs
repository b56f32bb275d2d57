//! Connecting to the upstream.

use std::{io, net::SocketAddr, pin::pin};

use rustix::io::Errno;
use socket2::Socket;
use tokio::{io::Interest, net::TcpStream, time::sleep};
use tproxy_common::flow::Protocol;

use super::{
    End,
    connection::{Connection, Ended, client_failed, pending_error},
    service::Shared,
};
use crate::{
    family::Family,
    flow::{ClientAddr, OriginalDst},
    host::connections,
    socket::{self, SocketError},
    source::Sources,
    way::First,
};

/// Connects for a client, from the source that its rule wants. Gives up when the client resets its
/// connection meanwhile, if it was accepted; that it has no more to send is no reason.
///
/// # Errors
/// How the connection ended, therefore.
pub(super) async fn connect(
    address: SocketAddr,
    client: Option<&TcpStream>,
    connection: &Connection,
) -> Result<TcpStream, Ended> {
    let mut client_error = pin!(failure_of(client));
    let mut timer = pin!(sleep(connection.connect_timeout()));
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
        origin: &connection.arrived().origin,
        class: connection.arrived().class,
    };
    let egress = connection.shared.ways.borrow_mut().egress(connection.rule(), &first);
    let egress = egress.map_err(|error| Ended::from(ConnectError::Connect(error)))?;
    loop {
        let socket = socket::upstream(address, source, egress);
        let socket = socket.inspect(|socket| {
            // Else it leaves with another one, and arrives all the same.
            let _ = socket::set_class(socket, Family::of(address.ip()), connection.arrived().class);
            if client.is_some_and(socket::has_data) {
                socket::join_ack_with_data(socket)
            }
        });
        let connected = match socket {
            Ok(socket) => tokio::select! {
                biased;
                ended = &mut client_error => return Err(ended),
                () = &mut timer => return Err(failed(connection, End::ConnectTimeout)),
                connected = handshake(socket, address, &connection.shared) => {
                    connected.map_err(ConnectError::Connect)
                }
            },
            Err(error) => Err(ConnectError::Socket(error)),
        };
        match connected {
            Err(error) if error.is_taken() => {
                match sources.next(&connection.shared.counters.source_fallbacks, is_clients) {
                    Some(another) => source = another,
                    None => return Err(error.into()),
                }
            }
            Err(error) => {
                forget_reached(connection);
                return Err(error.into());
            }
            Ok(stream) => {
                connection.shared.counters.connect_latency.observe(connection.live.began().elapsed());
                return Ok(stream);
            }
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

fn failed(connection: &Connection, end: End) -> Ended {
    forget_reached(connection);
    end.into()
}

/// The next client is told before it is accepted.
fn forget_reached(connection: &Connection) {
    connection.shared.decisions.borrow_mut().unreached(connection.dst());
}

/// As connect(2), which is under way as soon as it is called: not before does it say from which port.
async fn handshake(socket: Socket, upstream: SocketAddr, shared: &Shared) -> io::Result<TcpStream> {
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
