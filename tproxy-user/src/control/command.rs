//! What is asked of the instance itself.

use tokio::sync::{mpsc, oneshot};

use super::Draining;
use crate::{datapath::MapUse, instance};

/// What the main loop of a run is asked to do. Whoever asks waits for the answer.
#[derive(Debug)]
pub enum Command {
    /// Say how things are.
    Look(oneshot::Sender<Result<Box<instance::Look>, String>>),
    /// Say how full the maps are, which takes longer.
    Maps(oneshot::Sender<Result<Vec<MapUse>, String>>),
    /// Take no new flow, and stop when the live ones have ended.
    Drain(oneshot::Sender<Draining>),
}

/// Where commands are sent.
#[derive(Debug, Clone)]
pub struct Commands(mpsc::Sender<Command>);

/// Commands waiting for the main loop. More than there are connections is of no use.
const WAITING: usize = 64;

/// Both ends.
#[must_use]
pub fn asked() -> (Commands, mpsc::Receiver<Command>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Commands(sender), receiver)
}

impl Commands {
    /// Asks, and waits for the answer; `None` when the instance is about to end.
    pub async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.0.send(command(answer)).await.ok()?;
        answered.await.ok()
    }
}
