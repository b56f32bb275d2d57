//! The journal's files.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{
    Identity,
    change::{Change, Entry, Undone},
};
use crate::{
    host::{
        HostError,
        directory::{self, release},
    },
    mark::Mark,
    socket::namespace_cookie,
};

/// Not /proc/self: threads may be in namespaces of their own.
const NAMESPACE: &str = "/proc/thread-self/ns/net";

/// Of what is written here. One that is higher may mean anything.
const FORMAT: u32 = 1;

/// What one instance did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    /// [`FORMAT`]; there was none at first.
    #[serde(default)]
    format: u32,
    pub(super) pid: u32,
    pub(super) place: Whereabouts,
    pub(super) identity: Identity,
    /// The changes stand when the instance is gone, until one with the same identity takes over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) held: bool,
    pub(super) changes: Vec<Entry>,
}

/// What was changed: a network namespace, and with it all that was changed there, is gone at the end of its boot at the
/// latest, but the journal may be found by another that has its inode number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Whereabouts {
    boot: String,
    /// [`namespace_cookie`]
    namespace: u64,
}

impl Whereabouts {
    /// Where the calling thread is.
    fn here() -> Result<Self, HostError> {
        let namespace = namespace_cookie().map_err(failed("ask for the cookie of", Path::new(NAMESPACE)))?;
        Ok(Self { boot: boot_id()?, namespace })
    }
}

/// What became of a record's changes; those that failed are left in the record.
#[derive(Debug, Default)]
pub(super) struct Undoing {
    pub(super) gone: Vec<Change>,
    pub(super) failed: Option<HostError>,
}

impl Record {
    pub(super) fn new(identity: Identity) -> Result<Self, HostError> {
        Ok(Self {
            format: FORMAT,
            pid: std::process::id(),
            place: Whereabouts::here()?,
            identity,
            held: false,
            changes: Vec::new(),
        })
    }

    /// What this instance found where `change` is made too, if it did not leave it so.
    pub(super) fn original(&self, change: &Change) -> Option<&str> {
        self.changes.iter().find_map(|entry| entry.original(change))
    }

    /// Makes sure that what it did still stands: somebody may have taken it away.
    pub(super) fn make_again(&self) -> Result<(), HostError> {
        self.changes.iter().try_for_each(|entry| entry.make(&self.identity))
    }

    /// Takes back the changes, last one first.
    pub(super) fn undo(&mut self, others: &[Self]) -> Undoing {
        let mut undoing = Undoing::default();
        let mut left = Vec::new();
        while let Some(entry) = self.changes.pop() {
            match entry.undo(&self.identity, others) {
                Ok(Undone::Gone) => undoing.gone.push(entry.change().clone()),
                Ok(Undone::Nothing) => {}
                Err(error) => {
                    undoing.failed.get_or_insert(error);
                    left.push(entry);
                }
            }
        }
        left.reverse();
        self.changes = left;
        undoing
    }
}

fn boot_id() -> Result<String, HostError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    fs::read_to_string(path).map(|id| id.trim_end().to_owned()).map_err(failed("read", path))
}

/// What tells the network namespace of the calling thread from others, as long as it exists.
pub(in crate::host) fn namespace_inode() -> Result<u64, HostError> {
    let namespace = Path::new(NAMESPACE);
    Ok(fs::metadata(namespace).map_err(failed("look at", namespace))?.ino())
}

/// The directory of one network namespace.
#[derive(Debug, Clone)]
pub(super) struct Store {
    root: PathBuf,
    directory: PathBuf,
}

impl Store {
    pub(super) fn of_this_namespace(root: &Path) -> Result<Self, HostError> {
        Ok(Self { root: root.to_owned(), directory: root.join(namespace_inode()?.to_string()) })
    }

    /// Waits until no other instance of the namespace works on the directory or the host.
    pub(super) fn lock(&self) -> Result<LockedStore<'_>, HostError> {
        let directory =
            directory::lock(&self.directory, &self.root).map_err(failed("lock", &self.directory))?;
        Ok(LockedStore { store: self, directory })
    }

    fn record(&self, mark: Mark) -> PathBuf {
        self.directory.join(format!("{:08x}.json", mark.steer()))
    }

    fn lock_file(&self, mark: Mark) -> PathBuf {
        self.directory.join(format!("{:08x}.lock", mark.steer()))
    }
}

/// The directory while nobody else changes it; it disappears with the last journal.
#[derive(Debug)]
pub(super) struct LockedStore<'a> {
    store: &'a Store,
    directory: directory::LockedDirectory,
}

/// A journal in the directory, of an instance alive or dead.
#[derive(Debug)]
pub(super) enum FoundJournal {
    Living(Record),
    /// Gone, and its changes are to stand.
    Held(Record),
    Dead(Record),
    /// What it changed is gone too, but for its pins.
    Elsewhere(Record),
    /// Of an instance that lives, and of another version that writes otherwise.
    Strange(PathBuf),
    /// Written by a crash, by a newer version that is gone, or by somebody else.
    Unreadable(PathBuf, String),
}

impl LockedStore<'_> {
    /// Every journal of the namespace.
    pub(super) fn journals(&self) -> Result<Vec<FoundJournal>, HostError> {
        let directory = &self.store.directory;
        let mut found = Vec::new();
        for file in fs::read_dir(directory).map_err(failed("list", directory))? {
            let path = file.map_err(failed("list", directory))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                found.push(self.journal(path)?);
            }
        }
        Ok(found)
    }

    fn journal(&self, path: PathBuf) -> Result<FoundJournal, HostError> {
        // First, since only of the dead it is known that nothing more is written.
        let lives = self.is_locked(&path.with_extension("lock"))?;
        let text = fs::read(&path).map_err(failed("read", &path))?;
        Ok(match understand(&text) {
            Err(_) if lives => FoundJournal::Strange(path),
            Err(reason) => FoundJournal::Unreadable(path, reason),
            Ok(record) if lives => FoundJournal::Living(record),
            Ok(record) if record.place != Whereabouts::here()? => FoundJournal::Elsewhere(record),
            Ok(record) if record.held => FoundJournal::Held(record),
            Ok(record) => FoundJournal::Dead(record),
        })
    }

    /// Whether the file is that of an instance with this mark.
    pub(super) fn is_journal_of(&self, path: &Path, mark: Mark) -> bool {
        *path == self.store.record(mark)
    }

    /// Gives the file a name under which it is in nobody's way, whatever it says.
    pub(super) fn put_aside(&self, path: &Path) -> Result<PathBuf, HostError> {
        let free = |number: &u32| !path.with_extension(format!("unreadable{number}")).exists();
        let number = (1..).find(free).expect("there are more numbers than files");
        let aside = path.with_extension(format!("unreadable{number}"));
        fs::rename(path, &aside).map_err(failed("rename", path))?;
        Ok(aside)
    }

    /// Whether an instance holds the lock file at `path`.
    fn is_locked(&self, path: &Path) -> Result<bool, HostError> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened.map_err(failed("open", path))?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                release(&file);
                Ok(false)
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(failed("lock", path)(error.into())),
        }
    }

    /// The instances that live.
    pub(super) fn living(&self) -> Result<Vec<Record>, HostError> {
        let living = self.journals()?.into_iter().filter_map(|found| match found {
            FoundJournal::Living(record) => Some(record),
            _ => None,
        });
        Ok(living.collect())
    }

    /// The instances whose changes stand: they live, or are held.
    pub(super) fn standing(&self) -> Result<Vec<Record>, HostError> {
        let standing = self.journals()?.into_iter().filter_map(|found| match found {
            FoundJournal::Living(record) | FoundJournal::Held(record) => Some(record),
            _ => None,
        });
        Ok(standing.collect())
    }

    /// The instances whose changes stand, but for the one of `record`.
    pub(super) fn standing_but(&self, record: &Record) -> Result<Vec<Record>, HostError> {
        let mut standing = self.standing()?;
        standing.retain(|other| other.identity != record.identity);
        Ok(standing)
    }

    /// Makes the record's instance a living one for as long as the file is open.
    pub(super) fn claim(&self, record: &Record) -> Result<File, HostError> {
        let path = self.store.lock_file(record.identity.mark);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("create", &path))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| failed("lock", &path)(error.into()))?;
        self.save(record).inspect_err(|_| {
            release(&file);
            // The next start would do it too.
            let _ = self.sweep();
        })?;
        Ok(file)
    }

    /// All or nothing, and on disk when it returns.
    pub(super) fn save(&self, record: &Record) -> Result<(), HostError> {
        let path = self.store.record(record.identity.mark);
        let new = path.with_extension("new");
        let write = || {
            let mut file =
                OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec_pretty(record)?)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            self.directory.sync()
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&new);
            failed("write", &path)(error)
        })
    }

    /// Forgets an instance.
    pub(super) fn remove(&self, identity: &Identity) -> Result<(), HostError> {
        // The list first: a lock without a list means nothing.
        self.delete(&self.store.record(identity.mark))?;
        self.delete(&self.store.lock_file(identity.mark))
    }

    /// Deletes what a crash left half made, or what belonged to a journal that is gone.
    pub(super) fn sweep(&self) -> Result<(), HostError> {
        let directory = &self.store.directory;
        for file in fs::read_dir(directory).map_err(failed("list", directory))? {
            let path = file.map_err(failed("list", directory))?.path();
            let is = |wanted: &str| path.extension().is_some_and(|extension| extension == wanted);
            let orphan = is("lock") && !path.with_extension("json").exists() && !self.is_locked(&path)?;
            if orphan || is("new") {
                self.delete(&path)?;
            }
        }
        Ok(())
    }

    pub(super) fn delete(&self, path: &Path) -> Result<(), HostError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
            _ => Ok(()),
        }
    }
}

fn understand(text: &[u8]) -> Result<Record, String> {
    let record: Record = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if record.format <= FORMAT {
        Ok(record)
    } else {
        Err(format!("it has format {}, and this version knows {FORMAT}", record.format))
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostError + use<> {
    let path = path.to_owned();
    move |source| HostError::Journal { action, path, source }
}

/// A mark as `VALUE/MASK`, the way it is given on the command line.
pub(super) mod mark_as_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::mark::Mark;

    pub(in crate::host::journal) fn serialize<S: Serializer>(mark: &Mark, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(mark)
    }

    pub(in crate::host::journal) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Mark, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}
