//! Taking back what instances left that could not do it themselves.

use std::{fmt, path::Path};

use super::{
    Change, Identity, ROOT,
    store::{FoundJournal, LockedStore, Record, Store},
};
use crate::{
    host::{HostError, lingering, local_table::LocalTable},
    mark::Mark,
};

/// What was found, and what became of it.
#[derive(Debug)]
pub enum Reclaimed {
    /// A change of a dead instance was taken back.
    Undone {
        /// Of the dead instance.
        pid: u32,
        /// What it had changed.
        change: Change,
    },
    /// Sockets of a dead instance with foreign addresses were destroyed.
    Destroyed {
        /// Of the dead instance.
        pid: u32,
        /// How many.
        sockets: usize,
    },
    /// Sockets of a dead instance are left.
    Lingering {
        /// Of the dead instance.
        pid: u32,
        /// Why.
        error: HostError,
    },
    /// A change of a dead instance could not be taken back, and stays on record.
    NotUndone {
        /// Of the dead instance.
        pid: u32,
        /// Why.
        error: HostError,
    },
    /// A journal that this version does not understand was put aside.
    Unreadable {
        /// What it is called now.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The control socket of a dead instance was removed.
    Socket {
        /// Where it was.
        path: std::path::PathBuf,
    },
    /// An instance lives, and was left alone.
    Running {
        /// Of the instance.
        pid: u32,
        /// Its mark.
        mark: Mark,
    },
}

impl Reclaimed {
    /// Whether something is left that somebody has to see to.
    #[must_use]
    pub const fn is_failure(&self) -> bool {
        matches!(self, Self::Lingering { .. } | Self::NotUndone { .. })
    }
}

impl fmt::Display for Reclaimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undone { pid, change: change @ Change::Sysctl { .. } } => {
                write!(f, "restored the {change} (tproxy, pid {pid})")
            }
            Self::Undone { pid, change } => write!(f, "removed the {change} (tproxy, pid {pid})"),
            Self::Destroyed { pid, sockets } => {
                write!(f, "destroyed {sockets} lingering sockets with foreign addresses (tproxy, pid {pid})")
            }
            Self::Lingering { pid, error } | Self::NotUndone { pid, error } => {
                write!(f, "not undone (tproxy, pid {pid}): {error}")
            }
            Self::Unreadable { path, reason } => {
                write!(
                    f,
                    "put aside a journal that cannot be read ({reason}); if a newer tproxy wrote it, rename {} to .json and run that one's cleanup; otherwise remove it",
                    path.display()
                )
            }
            Self::Socket { path } => write!(f, "removed the control socket {}", path.display()),
            Self::Running { pid, mark } => {
                write!(f, "left alone: tproxy is running (pid {pid}, mark {mark})")
            }
        }
    }
}

/// Takes back what dead instances left in this network namespace; the living are left alone, and reported.
/// Nothing to do is an empty list.
///
/// # Errors
/// [`HostError::Journal`] when the journals cannot be read. What cannot be undone is a [`Reclaimed::NotUndone`].
pub fn cleanup() -> Result<Vec<Reclaimed>, HostError> {
    cleanup_in(Path::new(ROOT))
}

pub(in crate::host) fn cleanup_in(root: &Path) -> Result<Vec<Reclaimed>, HostError> {
    let store = Store::of_this_namespace(root)?;
    let locked = store.lock()?;
    let held = locked.journals()?.into_iter().filter_map(|found| match found {
        FoundJournal::Held(record) => Some(record),
        _ => None,
    });
    let mut reports = Vec::new();
    for record in held {
        reports.extend(bury(&locked, record)?);
    }
    reports.extend(dead(&locked)?);
    let running = |record: Record| Reclaimed::Running { pid: record.pid, mark: record.identity.mark };
    reports.extend(locked.living()?.into_iter().map(running));
    Ok(reports)
}

/// Takes back what the dead left.
pub(super) fn dead(locked: &LockedStore<'_>) -> Result<Vec<Reclaimed>, HostError> {
    let mut reports = Vec::new();
    for found in locked.journals()? {
        match found {
            FoundJournal::Living(_) | FoundJournal::Held(_) | FoundJournal::Strange(_) => {}
            FoundJournal::Unreadable(path, reason) => {
                let path = locked.put_aside(&path)?;
                reports.push(Reclaimed::Unreadable { path, reason });
            }
            FoundJournal::Elsewhere(mut record) => {
                // The pins of both namespaces are in one directory, and outlive what they were attached to.
                record.changes.retain(|entry| matches!(entry.change(), Change::Pins { .. }));
                reports.extend(take_back(locked, record)?);
            }
            FoundJournal::Dead(record) => reports.extend(bury(locked, record)?),
        }
    }
    locked.sweep()?;
    Ok(reports)
}

/// Takes back what a dead instance of this namespace left, and destroys its sockets.
fn bury(locked: &LockedStore<'_>, record: Record) -> Result<Vec<Reclaimed>, HostError> {
    let (pid, Identity { mark, table, .. }) = (record.pid, record.identity);
    let mut reports = take_back(locked, record)?;
    match LocalTable::load(table).and_then(|local| lingering::destroy(mark, &local)) {
        Ok(0) => {}
        Ok(sockets) => reports.push(Reclaimed::Destroyed { pid, sockets }),
        Err(error) => reports.push(Reclaimed::Lingering { pid, error }),
    }
    Ok(reports)
}

fn take_back(locked: &LockedStore<'_>, mut record: Record) -> Result<Vec<Reclaimed>, HostError> {
    let pid = record.pid;
    let undoing = record.undo(&locked.standing_but(&record)?);
    let mut reports: Vec<_> =
        undoing.gone.into_iter().map(|change| Reclaimed::Undone { pid, change }).collect();
    match undoing.failed {
        None => locked.remove(&record.identity)?,
        Some(error) => {
            locked.save(&record)?;
            reports.push(Reclaimed::NotUndone { pid, error });
        }
    }
    Ok(reports)
}
