//! TCP: connections.

use std::{io, sync::Arc};

use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot},
};

use super::{Taker, WAITING};
use crate::flow::{ClientAddr, OriginalDst};

/// The connections of the rules that have the [`Taker`].
#[derive(Debug)]
pub struct Connections(mpsc::Receiver<Handed>);

/// A client's connection to wherever it wanted to go. It is steered for as long as this lives and the instance does.
#[derive(Debug)]
pub struct Intercepted {
    /// To and from the client, who believes to talk to the destination. Closing it is an orderly end.
    pub stream: TcpStream,
    /// Who connected.
    pub client: ClientAddr,
    /// Where the client wanted to go.
    pub destination: OriginalDst,
    /// The name of the rule that selected the connection.
    pub rule: Arc<str>,
    /// The worker counts the connection as live until this is dropped.
    _live: oneshot::Sender<()>,
}

/// On its way from the runtime of a worker to another.
#[derive(Debug)]
pub(super) struct Handed {
    stream: std::net::TcpStream,
    client: ClientAddr,
    destination: OriginalDst,
    rule: Arc<str>,
    live: oneshot::Sender<()>,
}

/// Both ends, for the connections of rules about TCP.
#[must_use]
pub fn connections() -> (Taker, Connections) {
    let (taker, connections) = mpsc::channel(WAITING);
    (Taker { connections: Some(taker), sessions: None }, Connections(connections))
}

impl Connections {
    /// Waits for the next connection; `None` once no rule hands over any more. To be called within a tokio runtime, which
    /// the stream then belongs to. Safe to drop while waiting.
    ///
    /// # Errors
    /// When the runtime cannot take the stream on.
    pub async fn next(&mut self) -> io::Result<Option<Intercepted>> {
        let Some(handed) = self.0.recv().await else { return Ok(None) };
        let Handed { stream, client, destination, rule, live } = handed;
        Ok(Some(Intercepted { stream: TcpStream::from_std(stream)?, client, destination, rule, _live: live }))
    }
}

impl Taker {
    /// Hands a connection over, and waits until whoever took it has dropped it. An error, when nobody takes it.
    pub(crate) async fn hand_over(
        &self,
        stream: TcpStream,
        client: ClientAddr,
        destination: OriginalDst,
        rule: Arc<str>,
    ) -> io::Result<()> {
        let (live, dropped) = oneshot::channel();
        let taker = self.connections.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let handed = Handed { stream: stream.into_std()?, client, destination, rule, live };
        taker.send(handed).await.map_err(|_| io::ErrorKind::NotConnected)?;
        // Nothing is ever sent: it is told that the other end is gone.
        let _ = dropped.await;
        Ok(())
    }
}
