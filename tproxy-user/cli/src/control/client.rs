//! Asking a running instance.

use std::{io, path::PathBuf, time::Duration};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::HOST,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use tproxy::{
    host::{InstanceName, control_socket},
    mark::Mark,
};

use super::Failure;

/// For an instance to begin its answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No instance of that name.
    #[error("no tproxy called '{name}' answers at {}; {others}", path.display())]
    NotRunning {
        /// Who was asked.
        name: InstanceName,
        /// Where.
        path: PathBuf,
        /// Who else could be.
        others: RunningInstances,
    },
    /// The socket is not for this user.
    #[error("{}: {source}; ask as root, or as the user that tproxy runs as", path.display())]
    Forbidden {
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Somebody listens there who does not speak as tproxy does.
    #[error("{}: {reason}; the instance may just have ended, or be of another version", path.display())]
    Broken {
        /// Where.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The instance says why not.
    #[error("{0}")]
    Refused(String),
}

/// The instances that run.
#[derive(Debug)]
pub struct RunningInstances(Vec<InstanceName>);

impl std::fmt::Display for RunningInstances {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none runs, `tproxy run` starts one");
        }
        let names: Vec<_> = self.0.iter().map(InstanceName::to_string).collect();
        write!(f, "choose one that runs by --name: {}", names.join(", "))
    }
}

/// An instance that can be asked.
#[derive(Debug, Clone)]
pub struct Client {
    name: InstanceName,
    path: PathBuf,
}

impl Client {
    /// Of the instance of that name; without one, of this network namespace's with the usual mark. Never of whoever else
    /// happens to run: it may be asked to stop.
    #[must_use]
    pub fn new(name: Option<InstanceName>) -> Self {
        let name = name.unwrap_or_else(|| InstanceName::of_this_namespace(Mark::DEFAULT));
        Self { path: control_socket::path_of(&name), name }
    }

    /// What it is called.
    #[must_use]
    pub const fn name(&self) -> &InstanceName {
        &self.name
    }

    /// The answer to a request, read to its end.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn text(&self, method: Method, path: &str) -> Result<String, ClientError> {
        let (answer, _connection) = self.begin(method, path).await?;
        let body = answer.collect().await.map_err(|error| self.broken(&error))?.to_bytes();
        String::from_utf8(body.into()).map_err(|error| self.broken(&error))
    }

    /// The answer to a request, understood.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, ClientError> {
        let text = self.text(method, path).await?;
        serde_json::from_str(&text).map_err(|error| self.broken(&error))
    }

    /// Each line of an answer that goes on.
    ///
    /// # Errors
    /// [`ClientError`], and those of `take`.
    pub async fn lines<E: From<ClientError>>(
        &self,
        path: &str,
        mut take: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut answer, _connection) = self.begin(Method::GET, path).await?;
        let mut begun = Vec::new();
        while let Some(frame) = answer.frame().await {
            let frame = frame.map_err(|error| self.broken(&error))?;
            let Ok(data) = frame.into_data() else { continue };
            begun.extend_from_slice(&data);
            while let Some(end) = begun.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = begun.drain(..=end).collect();
                take(String::from_utf8_lossy(&line).trim_end())?;
            }
        }
        Ok(())
    }

    async fn begin(
        &self,
        method: Method,
        path: &str,
    ) -> Result<(Incoming, AbortOnDropHandle<()>), ClientError> {
        let stream = UnixStream::connect(&self.path).await.map_err(|error| self.unreachable(error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
        let request = Request::builder().method(method).uri(path).header(HOST, "tproxy");
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| self.broken(&error))?;
        let answer = timeout(PATIENCE, sender.send_request(request));
        let answer: Response<Incoming> =
            answer.await.map_err(|error| self.broken(&error))?.map_err(|error| self.broken(&error))?;
        if answer.status().is_success() {
            return Ok((answer.into_body(), connection));
        }
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|error| self.broken(&error))?.to_bytes();
        let failure = serde_json::from_slice::<Failure>(&body).map_err(|_| self.broken(&status))?;
        Err(ClientError::Refused(failure.error))
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Forbidden { path: self.path.clone(), source },
            _ => self.not_running(),
        }
    }

    fn not_running(&self) -> ClientError {
        let others = RunningInstances(control_socket::living());
        ClientError::NotRunning { name: self.name.clone(), path: self.path.clone(), others }
    }

    fn broken(&self, reason: &dyn std::fmt::Display) -> ClientError {
        ClientError::Broken { path: self.path.clone(), reason: reason.to_string() }
    }
}
