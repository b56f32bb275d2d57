//! What an instance offers to its operator, and where.

use std::{
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::{sync::Mutex, time::timeout};
use tokio_util::sync::CancellationToken;
use tproxy::{
    config::Config,
    flows::Flows,
    host::{ControlSocket, HostError, InstanceName},
};

use super::{Server, Shown};
use crate::run::Commands;

/// For the last answers to be taken.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Why the operator could not be served.
#[derive(Debug, thiserror::Error)]
pub enum SeatError {
    /// The control socket could not be made.
    #[error(transparent)]
    Socket(#[from] HostError),
    /// The address for metrics cannot be listened at.
    #[error("cannot listen at {address} for metrics: {source}; choose another --metrics")]
    Metrics {
        /// What was asked for.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// What is taken before an instance starts: a socket each, at which nobody accepts yet.
#[derive(Debug)]
pub struct Seat {
    name: InstanceName,
    socket: ControlSocket,
    listener: UnixListener,
    metrics: Option<TcpListener>,
}

/// Served as long as it lives; then the control socket is removed.
#[derive(Debug)]
pub struct Served {
    servers: Vec<Server>,
    ending: CancellationToken,
    _socket: ControlSocket,
}

impl Served {
    /// Ends answers that would go on, and waits a little until everybody has theirs.
    pub async fn finish(&self) {
        self.ending.cancel();
        let answered = join_all(self.servers.iter().map(Server::answered));
        if timeout(LAST_ANSWERS, answered).await.is_err() {
            tracing::debug!("control: somebody did not take the answer");
        }
    }
}

impl Seat {
    /// Makes sure that nobody else has the name or the address that a configuration gives its instance.
    ///
    /// # Errors
    /// [`SeatError`]
    pub fn take(config: &Config) -> Result<Self, SeatError> {
        let name = config.instance_name();
        let (socket, listener) = ControlSocket::claim(&name)?;
        let listen = |address| {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let metrics = config
            .metrics
            .map(|address| listen(address).map_err(|source| SeatError::Metrics { address, source }));
        Ok(Self { name, socket, listener, metrics: metrics.transpose()? })
    }

    /// Answers from now on. To be called inside a runtime.
    ///
    /// # Errors
    /// When a socket cannot be watched.
    pub fn serve(self, commands: Commands, flows: Flows) -> std::io::Result<Served> {
        let metrics = self.metrics.as_ref().map(TcpListener::local_addr).transpose()?;
        let ending = CancellationToken::new();
        let shown = Arc::new(Shown {
            name: self.name,
            started: Instant::now(),
            metrics,
            commands,
            flows,
            ending: ending.clone(),
            scraped: Mutex::default(),
            counted: Mutex::default(),
        });
        let mut servers = vec![Server::at_socket(self.listener, Arc::clone(&shown))?];
        if let Some(listener) = self.metrics {
            servers.push(Server::at_address(listener, shown)?);
        }
        Ok(Served { servers, ending, _socket: self.socket })
    }
}
