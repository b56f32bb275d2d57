//! What a running instance can be told to do. Commands are carried out one after the other, in the order in which they
//! were sent.

use std::{fmt, path::PathBuf, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use crate::{
    config::{self, Config},
    instance::{Changes, Instance},
};

/// Where commands are sent to.
pub type Commands = mpsc::Sender<Command>;

/// Commands that may wait; who sends another waits for room.
pub(super) const QUEUE: usize = 16;

/// Something to do. The reply is sent when it is done; nobody has to wait for it.
#[derive(Debug)]
pub enum Command {
    /// Read the file again, and go by it.
    Reload {
        /// Go back to the rules before unless [`Command::Confirm`] comes within this time.
        confirm: Option<Duration>,
        /// What has changed.
        reply: Reply<Changes>,
    },
    /// Keep what a reload brought that waits to be confirmed.
    Confirm {
        /// That it is kept.
        reply: Reply<()>,
    },
    /// Stop as SIGTERM does: take no new flow, wait for the live ones, end.
    Drain {
        /// That it has begun.
        reply: Reply<()>,
    },
}

/// To whoever sent the command.
pub type Reply<T> = oneshot::Sender<Result<T, Refused>>;

/// Why a command was not carried out, on lines that each name what is wrong and the remedy. Everything is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub Vec<String>);

impl Refused {
    fn because(text: impl fmt::Display) -> Self {
        Self(vec![text.to_string()])
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Course {
    GoOn,
    Stop,
}

/// Who carries them out.
pub(super) struct Executor {
    /// What is read again; none when the rules came from flags.
    file: Option<PathBuf>,
    unconfirmed: Option<Unconfirmed>,
}

/// A reload that waits to be confirmed.
struct Unconfirmed {
    before: Config,
    until: Instant,
}

impl Executor {
    pub(super) const fn new(file: Option<PathBuf>) -> Self {
        Self { file, unconfirmed: None }
    }

    pub(super) fn carry_out(&mut self, command: Command, instance: &mut Instance) -> Course {
        // That nobody waits for a reply is no failure.
        match command {
            Command::Reload { confirm, reply } => drop(reply.send(self.reload(confirm, instance))),
            Command::Confirm { reply } => drop(reply.send(self.confirm())),
            Command::Drain { reply } => {
                drop(reply.send(Ok(())));
                return Course::Stop;
            }
        }
        Course::GoOn
    }

    fn reload(&mut self, confirm: Option<Duration>, instance: &mut Instance) -> Result<Changes, Refused> {
        let outcome = self.try_reload(confirm, instance);
        match &outcome {
            Ok(changes) => tracing::info!(%changes, ?confirm, "reloaded"),
            Err(Refused(lines)) => {
                for line in lines {
                    tracing::error!("not reloaded: {line}");
                }
            }
        }
        outcome
    }

    fn try_reload(&mut self, confirm: Option<Duration>, instance: &mut Instance) -> Result<Changes, Refused> {
        let Some(file) = &self.file else {
            return Err(Refused::because(
                "the rules came from flags: start with --config FILE, which can be read again",
            ));
        };
        if self.unconfirmed.is_some() {
            return Err(Refused::because(
                "an earlier reload waits to be confirmed: confirm it, or wait until it is rolled back",
            ));
        }
        let config = config::load(file).map_err(|errors| Refused(errors.lines().collect()))?;
        let before = confirm.map(|within| (instance.config().clone(), within));
        let changes = instance.reload(config).map_err(Refused::because)?;
        self.unconfirmed =
            before.map(|(before, within)| Unconfirmed { before, until: Instant::now() + within });
        Ok(changes)
    }

    fn confirm(&mut self) -> Result<(), Refused> {
        match self.unconfirmed.take() {
            Some(_) => {
                tracing::info!("confirmed");
                Ok(())
            }
            None => Err(Refused::because(
                "no reload waits to be confirmed: it was confirmed before, or rolled back",
            )),
        }
    }

    /// Completes when it is too late to confirm; never while nothing waits for that.
    pub(super) async fn too_late(&self) {
        match &self.unconfirmed {
            Some(unconfirmed) => sleep_until(unconfirmed.until).await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn roll_back(&mut self, instance: &mut Instance) {
        let Some(Unconfirmed { before, .. }) = self.unconfirmed.take() else { return };
        match instance.reload(before) {
            Ok(changes) => tracing::warn!(%changes, "rolled back: the reload was not confirmed in time"),
            Err(error) => tracing::error!("the reload was not confirmed, and cannot be rolled back: {error}"),
        }
    }
}
