//! Directories of several processes that exist only as long as something is in them.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// How often others may come in between before what they leave is taken for an answer.
const TRIES: usize = 1_000;

/// A directory that nobody else locks or removes. When dropped, it is removed if nothing is in it, and so are those above
/// it up to `top`.
#[derive(Debug)]
pub(super) struct LockedDirectory {
    path: PathBuf,
    top: PathBuf,
    file: File,
}

/// Makes `path`, and `top` above it, if need be, and waits until nobody else has it locked.
pub(super) fn lock(path: &Path, top: &Path) -> io::Result<LockedDirectory> {
    loop {
        make(path)?;
        if let Some(locked) = lock_existing(path, top)? {
            return Ok(locked);
        }
    }
}

/// Makes a directory and those above it, whoever removes or makes the same ones at that time.
pub(super) fn make(path: &Path) -> io::Result<()> {
    let make = || DirBuilder::new().recursive(true).mode(0o700).create(path);
    // One above was removed before this was made in it; or was made by another, and removed before it was looked at.
    let disturbed =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists);
    (1..TRIES).map(|_| make()).find(|made| !made.as_ref().is_err_and(disturbed)).unwrap_or_else(make)
}

/// Removes `path`, and those above it up to `top`, unless something is in it. Waits until nobody has it locked.
pub(super) fn remove_if_empty(path: &Path, top: &Path) {
    drop(lock_existing(path, top));
}

fn lock_existing(path: &Path, top: &Path) -> io::Result<Option<LockedDirectory>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    flock(&file, FlockOperation::LockExclusive)?;
    let locked = file.metadata()?;
    // What was removed while we waited is not what the next one will lock.
    let is_current =
        fs::metadata(path).is_ok_and(|now| (now.ino(), now.dev()) == (locked.ino(), locked.dev()));
    Ok(is_current.then(|| LockedDirectory { path: path.to_owned(), top: top.to_owned(), file }))
}

impl LockedDirectory {
    /// Waits until it is on disk what is in it.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

impl Drop for LockedDirectory {
    fn drop(&mut self) {
        // Fails while something is in it, as it should.
        let removed = fs::remove_dir(&self.path).is_ok();
        release(&self.file);
        if removed
            && self.path != self.top
            && let Some(above) = self.path.parent()
        {
            remove_if_empty(above, &self.top);
        }
    }
}

/// Gives up a lock now. Closing the file does so only when the last copy of it is closed, and a process that
/// another thread is about to spawn has copies of all files until it executes its program (flock(2)).
pub(super) fn release(file: &File) {
    // Cannot fail on a file that is open.
    let _ = flock(file, FlockOperation::Unlock);
}
