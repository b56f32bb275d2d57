//! Reading configuration files, which may take long (a file system over a network), in threads of their own: the main
//! loop does not wait. One after the other, so that what was asked for last holds.

use std::{collections::VecDeque, path::PathBuf, thread, time::Duration};

use tokio::sync::oneshot;
use tproxy::{
    config::{self, Config},
    instance::Changes,
};

use super::commands::{Refused, Reply};

/// Files that may wait to be read.
const WAITING: usize = 64;

/// What a file is read for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// To go by it.
    Reload {
        /// As [`super::Command::Reload`] has it.
        confirm: Option<Duration>,
        /// What has changed.
        reply: Reply<Changes>,
    },
    /// To say what would change.
    Check {
        /// What would.
        reply: Reply<Changes>,
    },
}

impl Purpose {
    fn refuse(self, why: &str) {
        let (Self::Reload { reply, .. } | Self::Check { reply }) = self;
        // That nobody waits for it is no failure.
        let _ = reply.send(Err(Refused::because(why)));
    }
}

/// A file that has been read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) purpose: Purpose,
    pub(super) config: Result<Config, Refused>,
}

/// Files that are read, and wait to be.
#[derive(Debug, Default)]
pub(super) struct Loads {
    current: Option<(Purpose, oneshot::Receiver<Result<Config, Refused>>)>,
    waiting: VecDeque<(PathBuf, Purpose)>,
}

impl Loads {
    /// Has a file read when those before it are.
    pub(super) fn begin(&mut self, file: PathBuf, purpose: Purpose) {
        if self.waiting.len() >= WAITING {
            return purpose.refuse("too many files wait to be read: ask again when they have been");
        }
        self.waiting.push_back((file, purpose));
        self.begin_next();
    }

    #[cfg(test)]
    pub(super) fn is_reading(&self) -> bool {
        self.current.is_some()
    }

    /// Completes when the first of them has been read; never while there is none. Nothing is lost when it is given up.
    pub(super) async fn next(&mut self) -> Read {
        let Some((_, reading)) = &mut self.current else { return std::future::pending().await };
        let config = reading.await.unwrap_or_else(|_| Err(Refused::because("the file could not be read")));
        let Some((purpose, _)) = self.current.take() else {
            unreachable!("it was there, and only this takes it")
        };
        self.begin_next();
        Read { purpose, config }
    }

    fn begin_next(&mut self) {
        while self.current.is_none() {
            let Some((file, purpose)) = self.waiting.pop_front() else { return };
            let (tell, told) = oneshot::channel();
            let read = move || {
                let config = config::load(&file).map_err(|errors| Refused(errors.lines().collect()));
                // That nobody waits any more is no failure.
                let _ = tell.send(config);
            };
            // Nobody joins it: one that hangs would keep the process from its end.
            match thread::Builder::new().name("tproxy-read".into()).spawn(read) {
                Ok(_) => self.current = Some((purpose, told)),
                Err(error) => purpose.refuse(&format!("no thread to read the file in: {error}; ask again")),
            }
        }
    }
}
