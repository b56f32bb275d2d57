//! Why steered packets do not arrive. It may take seconds to ask the firewall, which the main loop does not wait for.

use std::thread;

use tokio::sync::mpsc;
use tproxy::{arrivals::Entrance, host::Identity, instance::Loss};

use crate::doctor::loss;

/// Finds reasons, in threads of its own.
pub(super) struct Explainer {
    identity: Identity,
    tell: mpsc::UnboundedSender<(Entrance, String)>,
    told: mpsc::UnboundedReceiver<(Entrance, String)>,
}

impl Explainer {
    pub(super) fn new(identity: Identity) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        Self { identity, tell, told }
    }

    /// Begins to look for reasons.
    pub(super) fn begin(&self, losses: Vec<Loss>) {
        if losses.is_empty() {
            return;
        }
        let (identity, tell) = (self.identity, self.tell.clone());
        let entrances: Vec<_> = losses.iter().map(|loss| loss.entrance).collect();
        let look = move || {
            for lost in losses {
                // That nobody waits any more is no failure.
                let _ = tell.send((lost.entrance, loss::reason(&lost, &identity)));
            }
        };
        if let Err(error) = thread::Builder::new().name("tproxy-look".into()).spawn(look) {
            for entrance in entrances {
                let _ = self.tell.send((entrance, format!("the reason is not looked for: {error}")));
            }
        }
    }

    /// Completes when a reason was found, or looked for in vain.
    pub(super) async fn explained(&mut self) -> (Entrance, String) {
        match self.told.recv().await {
            Some(explained) => explained,
            None => std::future::pending().await,
        }
    }
}
