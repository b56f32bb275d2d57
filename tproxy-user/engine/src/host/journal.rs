//! What an instance changed on the host, written down before it is done.
//!
//! `/run/tproxy/<inode of the network namespace>/<steer mark>.json` lists the changes of one instance, and
//! `<steer mark>.lock` next to it is locked while the instance lives, so that what is free is left over.
//! (Two files, because the list is replaced as a whole.) The directory itself is locked while anything in it,
//! or anything it describes, changes.

use std::{fs::File, path::Path};

use serde::{Deserialize, Serialize};

use super::{HostError, Owned, directory::release, policy};
use crate::mark::Mark;

mod change;
mod reclaim;
mod store;

pub use change::Change;
use change::Entry;
#[cfg(test)]
pub(super) use reclaim::cleanup_in;
pub use reclaim::{Report, cleanup};
pub(super) use store::namespace_inode;
use store::{Found, Locked, Record, Store};

/// Where all journals are.
pub(super) const ROOT: &str = "/run/tproxy";

/// What one instance owns exclusively in its network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Of its packets.
    #[serde(with = "store::mark_as_text")]
    pub mark: Mark,
    /// Of its `local default` route.
    pub table: u32,
    /// Of its `ip rule`s; several instances may share one.
    pub priority: u32,
}

impl Identity {
    /// What an instance has that is given nothing else.
    pub const DEFAULT: Self = Self { mark: Mark::DEFAULT, table: 29_808, priority: 100 };
}

/// The guard of everything this instance changes on the host: undone when dropped, also by a panic, and by
/// the next start if the process is killed.
///
/// Belongs to the network namespace of the thread that made it; use and drop it in threads of the same.
#[derive(Debug)]
pub struct Journal {
    store: Store,
    record: Record,
    /// Held as long as the instance lives; `None` once everything is undone.
    alive: Option<File>,
}

impl Journal {
    /// Reclaims what dead instances left in this namespace, then claims `identity`. What one with the same identity left
    /// to be held is taken over.
    ///
    /// # Errors
    /// [`HostError::InUse`] names a living instance that owns part of it, [`HostError::Held`] one that is gone but is
    /// held, [`HostError::MarkTaken`] and
    /// [`HostError::TableTaken`] what is somebody else's; [`HostError::Journal`] when it cannot be written.
    /// The host is then as it was.
    pub fn begin(identity: Identity) -> Result<Self, HostError> {
        Self::begin_in(Path::new(ROOT), identity)
    }

    pub(super) fn begin_in(root: &Path, identity: Identity) -> Result<Self, HostError> {
        let store = Store::of_this_namespace(root)?;
        let locked = store.lock()?;
        for report in reclaim::dead(&locked)? {
            tracing::info!("left over from an earlier run: {report}");
            if let Report::NotUndone { error, .. } = report {
                return Err(error);
            }
        }
        let inherited = refuse_shared(&locked, &identity)?;
        let mut record = Record::new(identity)?;
        match inherited {
            None => policy::refuse_foreign(&identity)?,
            Some(left) => {
                left.make_again()?;
                (record.held, record.changes) = (left.held, left.changes);
            }
        }
        let alive = locked.claim(&record)?;
        drop(locked);
        Ok(Self { store, record, alive: Some(alive) })
    }

    /// Writes `change` down durably, then makes it; one that stands already is left alone.
    ///
    /// # Errors
    /// The change was then not made.
    pub fn apply(&mut self, change: Change) -> Result<(), HostError> {
        if self.record.changes.iter().any(|entry| *entry.change() == change) {
            return Ok(());
        }
        let locked = self.store.lock()?;
        let entry = Entry::prepare(change, &locked.standing()?)?;
        self.record.changes.push(entry.clone());
        let made = locked.save(&self.record).and_then(|()| entry.make(&self.record.identity));
        if made.is_err() {
            self.record.changes.pop();
            // Should this fail too, the record promises to undo what was not done, which is harmless.
            let _ = locked.save(&self.record);
        }
        made
    }

    /// Takes one change back, such as the rule of an interface that disappeared. What was never applied, or
    /// is gone already, is no error.
    ///
    /// # Errors
    /// The change is then still on record.
    pub fn revert(&mut self, change: &Change) -> Result<(), HostError> {
        let Some(at) = self.record.changes.iter().rposition(|entry| entry.change() == change) else {
            return Ok(());
        };
        let locked = self.store.lock()?;
        let others = locked.standing_but(&self.record)?;
        self.record.changes[at].undo(&self.record.identity, &others)?;
        self.record.changes.remove(at);
        locked.save(&self.record)
    }

    /// Whether the changes stand when the instance is gone, until one with the same identity takes over or [`cleanup`]
    /// takes them back; so also if it is killed, from now on.
    ///
    /// # Errors
    /// [`HostError::Journal`]; what held before then still does.
    pub fn hold(&mut self, held: bool) -> Result<(), HostError> {
        if self.record.held == held {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.record.held, held);
        let saved = self.store.lock()?.save(&self.record);
        if saved.is_err() {
            self.record.held = before;
        }
        saved
    }

    /// Takes everything back, last change first, and removes the journal; nothing, if it is held.
    ///
    /// # Errors
    /// The first failure; the rest is undone all the same, and what could not be stays on record for
    /// [`cleanup`] or the next start.
    pub fn undo(mut self) -> Result<(), HostError> {
        self.undo_all()
    }

    fn undo_all(&mut self) -> Result<(), HostError> {
        let Some(alive) = self.alive.take() else { return Ok(()) };
        let locked = self.store.lock()?;
        if self.record.held {
            release(&alive);
            return Ok(());
        }
        let others = locked.standing_but(&self.record)?;
        let undone = self.record.undo(&others);
        let outcome = match undone.failed {
            None => locked.remove(&self.record.identity),
            Some(error) => locked.save(&self.record).and(Err(error)),
        };
        // Only now may others take it for dead.
        release(&alive);
        outcome
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Err(error) = self.undo_all() {
            tracing::error!("the host is not quite as it was: {error}; run `tproxy cleanup`");
        }
    }
}

/// Whether an instance's changes are to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It runs.
    Lives,
    /// It is gone, and they are to outlive it.
    Held,
    /// It is gone, and left them behind.
    LeftOver,
}

/// An instance that has a journal in this network namespace.
#[derive(Debug, Clone)]
pub struct OnRecord {
    /// Its process.
    pub pid: u32,
    /// What it owns.
    pub identity: Identity,
    /// Whether its changes stand.
    pub standing: Standing,
    /// What it changed.
    pub changes: Vec<Change>,
}

/// The instances on record in this network namespace, the living and those that left something. Nothing is changed.
///
/// # Errors
/// [`HostError::Journal`] when the journals cannot be read or kept.
pub fn on_record() -> Result<Vec<OnRecord>, HostError> {
    let store = Store::of_this_namespace(Path::new(ROOT))?;
    let locked = store.lock()?;
    let seen = |standing, record: Record| OnRecord {
        pid: record.pid,
        identity: record.identity,
        standing,
        changes: record.changes.iter().map(|entry| entry.change().clone()).collect(),
    };
    let known = locked.journals()?.into_iter().filter_map(|found| match found {
        Found::Living(record) => Some(seen(Standing::Lives, record)),
        Found::Held(record) => Some(seen(Standing::Held, record)),
        Found::Dead(record) => Some(seen(Standing::LeftOver, record)),
        Found::Elsewhere(_) | Found::Unreadable(..) => None,
    });
    Ok(known.collect())
}

/// Refuses what another instance owns, and finds the one that left the same to be taken over.
fn refuse_shared(locked: &Locked<'_>, identity: &Identity) -> Result<Option<Record>, HostError> {
    let mut inherited = None;
    for found in locked.journals()? {
        match found {
            Found::Living(other) => {
                if let Some(what) = shared(identity, &other.identity) {
                    return Err(HostError::InUse { pid: other.pid, what });
                }
            }
            Found::Held(other) if other.identity == *identity => inherited = Some(other),
            Found::Held(other) => {
                if let Some(what) = shared(identity, &other.identity) {
                    return Err(HostError::Held { pid: other.pid, what });
                }
            }
            Found::Dead(_) | Found::Elsewhere(_) | Found::Unreadable(..) => {}
        }
    }
    Ok(inherited)
}

/// What only one of two instances may own.
fn shared(wanted: &Identity, theirs: &Identity) -> Option<Owned> {
    let marks_meet = policy::selectors(wanted.mark).into_iter().any(|ours| {
        policy::selectors(theirs.mark).into_iter().any(|theirs| policy::confusable(ours, theirs))
    });
    if marks_meet {
        Some(Owned::Mark(theirs.mark))
    } else {
        (wanted.table == theirs.table).then_some(Owned::Table(theirs.table))
    }
}
