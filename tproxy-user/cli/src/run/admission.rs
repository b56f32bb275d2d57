//! Whether what is steered is still accepted by this host's firewalls, which others change at any time. To ask them takes
//! long, which the main loop does not wait for.

use std::{fs, thread};

use tokio::sync::mpsc;
use tproxy::{
    config::{Config, Firewall},
    host::{admission::Admission, nftables},
};

use crate::doctor::firewall;

/// Who looks.
pub(super) struct Admitting {
    tell: mpsc::UnboundedSender<Vec<Admission>>,
    told: mpsc::UnboundedReceiver<Vec<Admission>>,
    looking: Looking,
}

/// What the latest look came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looking {
    /// It goes on, and began with the firewall of this generation, if that is known.
    Now(Option<u32>),
    /// Nothing is to be done while it is of this one.
    Done(Option<u32>),
}

impl Admitting {
    pub(super) fn new() -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        Self { tell, told, looking: Looking::Done(None) }
    }

    /// Begins to look, if there may be something to be done.
    pub(super) fn begin(&mut self, config: &Config) {
        let Looking::Done(known) = self.looking else { return };
        if config.firewall == Firewall::LeftAlone {
            return;
        }
        let now = if has_legacy_tables() { None } else { nftables::generation().ok() };
        if known.is_some() && known == now {
            return;
        }
        let (config, tell) = (config.clone(), self.tell.clone());
        let look = move || {
            // That nobody waits any more is no failure.
            let _ = tell.send(firewall::admissions(&config));
        };
        match thread::Builder::new().name("tproxy-look".into()).spawn(look) {
            Ok(_) => self.looking = Looking::Now(now),
            Err(error) => tracing::warn!("the firewall is not looked at: {error}"),
        }
    }

    /// Completes when it was looked: where something has to be done.
    pub(super) async fn found(&mut self) -> Vec<Admission> {
        let Some(places) = self.told.recv().await else { return std::future::pending().await };
        let (Looking::Now(generation) | Looking::Done(generation)) = self.looking;
        self.looking = Looking::Done(generation.filter(|_| places.is_empty()));
        places
    }
}

/// Those of which no generation is told.
fn has_legacy_tables() -> bool {
    ["ip_tables_names", "ip6_tables_names"].into_iter().any(|tables| {
        fs::read_to_string(format!("/proc/thread-self/net/{tables}"))
            .is_ok_and(|names| !names.trim().is_empty())
    })
}
