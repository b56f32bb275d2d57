//! Connections to the control socket and to the address for metrics, and what each of them may use.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::SocketAddr,
    os::unix::net::UnixListener as StdUnixListener,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::io::Errno;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
    sync::{Mutex, Semaphore},
    task::AbortHandle,
    time::sleep,
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tproxy::{datapath::MapUse, flows::Flows, host::InstanceName};

use super::routes;
use crate::run::{Commands, with_reserve};

/// For a request to be there.
const REQUEST_TIME: Duration = Duration::from_secs(5);

/// For whoever asked to take some more of the answer.
const STALLED: Duration = Duration::from_secs(10);

/// Bytes of a request.
const REQUEST_SIZE: usize = 16 * 1024;

/// Connections at once; more are closed.
const CONNECTIONS: usize = 32;

/// Between two attempts to accept for lack of descriptors.
const BACK_OFF: Duration = Duration::from_millis(100);

/// What requests are answered from.
#[derive(Debug)]
pub struct Shown {
    /// What the instance is called.
    pub name: InstanceName,
    /// Since when it runs.
    pub started: Instant,
    /// Where Prometheus can ask.
    pub metrics: Option<SocketAddr>,
    /// Who knows the rest.
    pub commands: Commands,
    /// The live flows.
    pub flows: Flows,
    /// Cancelled when answers that would go on have to end.
    pub ending: CancellationToken,
    /// What metrics said last, and when.
    pub scraped: Mutex<Option<(Instant, Bytes)>>,
    /// How full maps were when their entries were counted last, and when it is time to do that again.
    pub counted: Mutex<Option<(Instant, Vec<MapUse>)>>,
}

/// What somebody may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everything: the superuser, or whom the process runs as.
    Owner,
    /// Metrics.
    Metrics,
    /// Nothing: another user.
    Nobody,
}

/// Answers until it is dropped.
#[derive(Debug)]
pub struct Server {
    places: Arc<Semaphore>,
    _task: AbortOnDropHandle<Infallible>,
}

impl Server {
    /// At a control socket. To be called inside a runtime.
    ///
    /// # Errors
    /// When the socket cannot be watched.
    pub fn at_socket(listener: StdUnixListener, shown: Arc<Shown>) -> io::Result<Self> {
        Ok(Self::at(ControlListener::Socket(UnixListener::from_std(listener)?), shown))
    }

    /// At an address, metrics only. To be called inside a runtime.
    ///
    /// # Errors
    /// When the socket cannot be watched.
    pub fn at_address(listener: std::net::TcpListener, shown: Arc<Shown>) -> io::Result<Self> {
        Ok(Self::at(ControlListener::Address(TcpListener::from_std(listener)?), shown))
    }

    fn at(listener: ControlListener, shown: Arc<Shown>) -> Self {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let task = tokio::spawn(serve(listener, Arc::clone(&places), shown));
        Self { places, _task: AbortOnDropHandle::new(task) }
    }

    /// Waits until everybody has their answer.
    pub(super) async fn answered(&self) {
        // It is never closed.
        let _ = self.places.acquire_many(CONNECTIONS as u32).await;
    }
}

enum ControlListener {
    Socket(UnixListener),
    Address(TcpListener),
}

trait Stream: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

impl ControlListener {
    async fn accept(&self) -> io::Result<(Access, Pin<Box<dyn Stream>>)> {
        match self {
            Self::Socket(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((access(&stream), Box::pin(stream)))
            }
            Self::Address(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Access::Metrics, Box::pin(stream)))
            }
        }
    }
}

/// The file's mode keeps others out already, unless somebody has changed it.
fn access(stream: &UnixStream) -> Access {
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == own => Access::Owner,
        _ => Access::Nobody,
    }
}

/// Whoever asks is answered, also when flows have all descriptors that they may have.
async fn accept(listener: &ControlListener) -> io::Result<(Access, Pin<Box<dyn Stream>>)> {
    match listener.accept().await {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::MFILE) => {
            // It is still readable, so this does not wait.
            with_reserve(|| listener.accept().now_or_never()).unwrap_or(Err(error))
        }
        accepted => accepted,
    }
}

async fn serve(listener: ControlListener, places: Arc<Semaphore>, shown: Arc<Shown>) -> Infallible {
    let mut served: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let (access, stream) = match accept(&listener).await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "control: cannot accept");
                sleep(BACK_OFF).await;
                continue;
            }
        };
        served.retain(|task| !task.is_finished());
        // Anybody may reach the address for metrics, and be slow; an answer takes a moment, so the oldest has had its time.
        if access == Access::Metrics && places.available_permits() == 0 {
            tracing::warn!(limit = CONNECTIONS, "control: too many connections; the oldest was closed");
            served.pop_front().inspect(AbortHandle::abort);
        }
        let place = match access {
            // Its place is free once the task has ended, for which it is waited.
            Access::Metrics => Arc::clone(&places).acquire_owned().await.ok(),
            Access::Owner | Access::Nobody => Arc::clone(&places).try_acquire_owned().ok(),
        };
        let Some(place) = place else {
            tracing::warn!(limit = CONNECTIONS, "control: too many connections; one was closed");
            continue;
        };
        let shown = Arc::clone(&shown);
        let task = tokio::spawn(async move {
            if let Err(error) = converse(stream, access, shown).await {
                tracing::debug!(%error, "control");
            }
            drop(place);
        });
        served.push_back(task.abort_handle());
    }
}

/// One request and its answer.
async fn converse(stream: Pin<Box<dyn Stream>>, access: Access, shown: Arc<Shown>) -> hyper::Result<()> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(STALLED));
    let service = service_fn(move |request| {
        let shown = Arc::clone(&shown);
        async move { Ok::<_, Infallible>(routes::answer(&request, access, &shown).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIME)
        .max_buf_size(REQUEST_SIZE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(Box::pin(stream)), service)
        .await
}
