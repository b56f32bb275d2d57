//! Connecting to the upstream.

use std::{io, net::SocketAddr, sync::atomic::Ordering::Relaxed};

use tokio::{
    io::Interest,
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{
    End,
    connection::{Connection, Ended, client_failed},
};
use crate::{
    config::Source,
    socket::{self, SocketError, UpstreamSource},
};

/// Connects for a client, from the source that its rule wants. Gives up when the client resets its
/// connection meanwhile; that it has no more to send is no reason.
///
/// # Errors
/// How the connection ended, therefore.
pub(super) async fn connect(
    address: SocketAddr,
    client: &TcpStream,
    connection: &Connection,
) -> Result<TcpStream, Ended> {
    tokio::select! {
        biased;
        _ = client.ready(Interest::ERROR) => {
            let error = client.take_error().ok().flatten();
            Err(error.map_or(End::ClientReset.into(), |error| client_failed(&error)))
        }
        connected = timeout(connection.shared.timeouts.connect, from_source(address, connection)) => {
            match connected {
                Ok(connected) => connected.map_err(Ended::from),
                Err(_) => Err(End::ConnectTimeout.into()),
            }
        }
    }
}

async fn from_source(address: SocketAddr, connection: &Connection) -> Result<TcpStream, ConnectError> {
    let client = connection.client.0;
    let source = match connection.rule().source {
        Source::Host => UpstreamSource::Host,
        Source::Client => UpstreamSource::Client(client.ip()),
        Source::ClientPort => UpstreamSource::ClientPort(client),
    };
    match from(address, source, connection).await {
        Err(error) if source == UpstreamSource::ClientPort(client) && error.is_taken() => {
            connection.shared.counters.source_fallbacks.fetch_add(1, Relaxed);
            from(address, UpstreamSource::Client(client.ip()), connection).await
        }
        result => result,
    }
}

async fn from(
    address: SocketAddr,
    source: UpstreamSource,
    connection: &Connection,
) -> Result<TcpStream, ConnectError> {
    let socket = socket::upstream(address, source, connection.shared.mark)?;
    Ok(TcpSocket::from_std_stream(socket.into()).connect(address).await?)
}

#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Connect(#[from] io::Error),
}

impl ConnectError {
    /// Whether another source port may do.
    fn is_taken(&self) -> bool {
        match self {
            Self::Socket(error) => matches!(error, SocketError::Taken { .. }),
            // The very 4-tuple is in use, perhaps by a connection in TIME_WAIT.
            Self::Connect(error) => error.kind() == io::ErrorKind::AddrNotAvailable,
        }
    }

    fn end(&self) -> End {
        use io::ErrorKind::{
            ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, PermissionDenied,
            TimedOut,
        };
        match self {
            Self::Socket(_) => End::ConnectFailed,
            Self::Connect(error) => match error.kind() {
                ConnectionRefused => End::ConnectRefused,
                ConnectionReset => End::UpstreamReset,
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
        Self { end: error.end(), error: Some(error.to_string()) }
    }
}
