//! What an instance changed on the host, written down before it is done.
//!
//! `/run/tproxy/<inode of the network namespace>/<steer mark>.json` lists the changes of one instance, and
//! `<steer mark>.lock` next to it is locked while the instance lives, so that what is free is left over.
//! (Two files, because the list is replaced as a whole.) The directory itself is locked while anything in it,
//! or anything it describes, changes.

use std::{fs::File, path::Path};

use serde::{Deserialize, Serialize};
use tproxy_common::defaults;

use super::{
    HostError, Owned,
    directory::release,
    fault, lingering,
    local_table::LocalTable,
    policy::{self, SeenRouting},
};
use crate::mark::Mark;

mod change;
mod reclaim;
mod store;

pub use change::Change;
use change::Entry;
#[cfg(test)]
pub(super) use reclaim::cleanup_in;
pub use reclaim::{Reclaimed, cleanup};
pub(super) use store::namespace_inode;
use store::{FoundJournal, LockedStore, Record, Store};

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
    pub const DEFAULT: Self =
        Self { mark: Mark::DEFAULT, table: defaults::TABLE, priority: defaults::PRIORITY };
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
            if let Reclaimed::NotUndone { error, .. } = report {
                return Err(error);
            }
        }
        let inherited = refuse_shared(&locked, &identity)?;
        let mut record = Record::new(identity)?;
        match inherited {
            None => record.changes = adopt(&identity)?,
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
        match self.ensure([change]).failures.pop() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// Has all of `wanted` in force: what is new is written down durably, at once, and then made, in this order; what was
    /// made before and is there no more is made again.
    pub fn ensure(&mut self, wanted: impl IntoIterator<Item = Change>) -> Ensured {
        let mut ensured = Ensured::default();
        let wanted: Vec<Change> = wanted.into_iter().collect();
        let (known, new): (Vec<_>, Vec<_>) =
            wanted.into_iter().partition(|change| self.position(change).is_some());
        if !known.is_empty() {
            self.restore(&known, &mut ensured);
        }
        if !new.is_empty()
            && let Err(error) = self.add(new, &mut ensured)
        {
            ensured.failures.push(error);
        }
        ensured
    }

    /// Whether it is on record.
    #[must_use]
    pub fn has(&self, change: &Change) -> bool {
        self.position(change).is_some()
    }

    fn position(&self, change: &Change) -> Option<usize> {
        self.record.changes.iter().rposition(|entry| entry.change() == change)
    }

    /// Makes what is on record again where it is there no more.
    fn restore(&self, known: &[Change], ensured: &mut Ensured) {
        let identity = &self.record.identity;
        let seen = match SeenRouting::take(identity) {
            Ok(seen) => seen,
            Err(error) => return ensured.failures.push(error),
        };
        for entry in self.record.changes.iter().filter(|entry| known.contains(entry.change())) {
            match entry.stands(identity, &seen) {
                Ok(true) => {}
                Ok(false) => match fault::at(entry.change()).and_then(|()| entry.make(identity)) {
                    Ok(()) => ensured.restored.push(entry.change().clone()),
                    Err(error) => ensured.failures.push(error),
                },
                Err(error) => ensured.failures.push(error),
            }
        }
    }

    fn add(&mut self, new: Vec<Change>, ensured: &mut Ensured) -> Result<(), HostError> {
        let locked = self.store.lock()?;
        let standing = locked.standing()?;
        let before = self.record.changes.len();
        for change in new {
            match Entry::prepare(change, &standing) {
                Ok(entry) => self.record.changes.push(entry),
                Err(error) => ensured.failures.push(error),
            }
        }
        if let Err(error) = locked.save(&self.record) {
            self.record.changes.truncate(before);
            return Err(error);
        }
        let identity = self.record.identity;
        let mut failures = Vec::new();
        let entries: Vec<Entry> = self.record.changes.drain(before..).collect();
        for entry in entries {
            match fault::at(entry.change()).and_then(|()| entry.make(&identity)) {
                Ok(()) => self.record.changes.push(entry),
                Err(error) => failures.push(error),
            }
        }
        if !failures.is_empty() {
            ensured.failures.append(&mut failures);
            // Should this fail, the record promises to undo what was not done, which is harmless.
            let _ = locked.save(&self.record);
        }
        Ok(())
    }

    /// Takes back what is on record and not in `wanted`, last change first, but for pins and what firewalls admit. What is gone already is no error.
    ///
    /// # Errors
    /// The first failure; the rest is taken back all the same, and what could not be stays on record.
    pub fn give_up_all_but(&mut self, wanted: &[Change]) -> Result<(), HostError> {
        let is_wanted = |change: &Change| change.lasts() || wanted.contains(change);
        if self.record.changes.iter().all(|entry| is_wanted(entry.change())) {
            return Ok(());
        }
        let locked = self.store.lock()?;
        let others = locked.standing_but(&self.record)?;
        let (kept, mut given_up): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.record.changes).into_iter().partition(|entry| is_wanted(entry.change()));
        let mut outcome = Ok(());
        while let Some(entry) = given_up.pop() {
            if let Err(error) = entry.undo(&self.record.identity, &others) {
                self.record.changes.push(entry);
                outcome = outcome.and(Err(error));
            }
        }
        self.record.changes.extend(kept);
        locked.save(&self.record).and(outcome)
    }

    /// Takes one change back, such as the rule of an interface that disappeared. What was never applied, or
    /// is gone already, is no error.
    ///
    /// # Errors
    /// The change is then still on record.
    pub fn revert(&mut self, change: &Change) -> Result<(), HostError> {
        let Some(at) = self.position(change) else { return Ok(()) };
        let locked = self.store.lock()?;
        let others = locked.standing_but(&self.record)?;
        self.record.changes[at].undo(&self.record.identity, &others)?;
        self.record.changes.remove(at);
        locked.save(&self.record)
    }

    /// Takes back what firewalls admit, if somebody who had this identity before had that done.
    ///
    /// # Errors
    /// What could not be taken back is still on record.
    pub fn give_up_admissions(&mut self) -> Result<(), HostError> {
        let changes = self.record.changes.iter().map(Entry::change);
        let admissions: Vec<_> =
            changes.filter(|change| matches!(change, Change::Admit { .. })).cloned().collect();
        admissions.iter().try_for_each(|change| self.revert(change))
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

/// What came of [`Journal::ensure`].
#[derive(Debug, Default)]
pub struct Ensured {
    /// What somebody else had taken away, and is there again.
    pub restored: Vec<Change>,
    /// What could not be had.
    pub failures: Vec<HostError>,
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
        FoundJournal::Living(record) => Some(seen(Standing::Lives, record)),
        FoundJournal::Held(record) => Some(seen(Standing::Held, record)),
        FoundJournal::Dead(record) => Some(seen(Standing::LeftOver, record)),
        FoundJournal::Elsewhere(_) | FoundJournal::Strange(_) | FoundJournal::Unreadable(..) => None,
    });
    Ok(known.collect())
}

/// Refuses what another instance owns, and finds the one that left the same to be taken over.
fn refuse_shared(locked: &LockedStore<'_>, identity: &Identity) -> Result<Option<Record>, HostError> {
    let mut inherited = None;
    for found in locked.journals()? {
        match found {
            FoundJournal::Living(other) => {
                if let Some(what) = shared(identity, &other.identity) {
                    return Err(HostError::InUse { pid: other.pid, what });
                }
            }
            FoundJournal::Held(other) if other.identity == *identity => inherited = Some(other),
            FoundJournal::Held(other) => {
                if let Some(what) = shared(identity, &other.identity) {
                    return Err(HostError::Held { pid: other.pid, what });
                }
            }
            // It is named by its mark, which is all that is known of it.
            FoundJournal::Strange(path) if locked.is_journal_of(&path, identity.mark) => {
                return Err(HostError::Strange { mark: identity.mark });
            }
            FoundJournal::Dead(_)
            | FoundJournal::Elsewhere(_)
            | FoundJournal::Strange(_)
            | FoundJournal::Unreadable(..) => {}
        }
    }
    Ok(inherited)
}

/// What an instance left that was given these, and whose journal is gone with its `/run`, as that of a container is; another
/// that lives has listeners, wherever its journal is.
fn adopt(identity: &Identity) -> Result<Vec<Entry>, HostError> {
    let ours = policy::refuse_foreign(identity)?;
    let Some(change) = ours.first() else { return Ok(Vec::new()) };
    if lingering::listens(identity.mark)? {
        return Err(HostError::InUseElsewhere { change: change.to_string(), mark: identity.mark });
    }
    lingering::destroy(identity.mark, &LocalTable::load(identity.table)?)?;
    for change in &ours {
        tracing::info!("adopted the {change}, which an instance left whose journal is gone");
    }
    Ok(ours.into_iter().map(Entry::adopted).collect())
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
