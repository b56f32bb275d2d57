//! Hearing of flows as they begin and end.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::broadcast::{self, error::RecvError};

use super::LiveFlow;

/// What one that is slow to hear may miss no more than.
const KEPT: usize = 8192;

/// What happened to a flow.
#[derive(Debug, Clone)]
pub enum Followed {
    /// It was accepted.
    Began(Arc<LiveFlow>),
    /// It is over.
    Ended(Arc<LiveFlow>),
    /// So many of these were not told: they came faster than they were heard.
    Missed(u64),
}

/// Those who hear. Without any, telling is one look at a number that hardly ever changes.
#[derive(Debug)]
pub(super) struct Followers {
    count: AtomicUsize,
    sender: broadcast::Sender<Followed>,
}

impl Default for Followers {
    fn default() -> Self {
        Self { count: AtomicUsize::new(0), sender: broadcast::Sender::new(KEPT) }
    }
}

impl Followers {
    pub(super) fn tell(&self, what: impl FnOnce() -> Followed) {
        if self.count.load(Relaxed) > 0 {
            // The last of them may have gone just now.
            let _ = self.sender.send(what());
        }
    }
}

/// One who hears.
#[derive(Debug)]
pub struct Follower {
    followers: Arc<Followers>,
    receiver: broadcast::Receiver<Followed>,
}

impl Follower {
    pub(super) fn new(followers: Arc<Followers>) -> Self {
        let receiver = followers.sender.subscribe();
        followers.count.fetch_add(1, Relaxed);
        Self { followers, receiver }
    }

    /// Waits for what comes next; `None` when the instance is no more.
    pub async fn next(&mut self) -> Option<Followed> {
        match self.receiver.recv().await {
            Ok(followed) => Some(followed),
            Err(RecvError::Lagged(missed)) => Some(Followed::Missed(missed)),
            Err(RecvError::Closed) => None,
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.followers.count.fetch_sub(1, Relaxed);
    }
}
