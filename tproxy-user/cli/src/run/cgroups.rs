//! Word of cgroups that come and go.

use std::{collections::BTreeSet, io, mem::MaybeUninit, path::PathBuf, sync::Arc};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tproxy::socket::ReadableFd;

/// Directories that are watched. What a process of another cgroup namespace makes the kernel does not tell here, and is
/// found when the instance looks around anyway.
pub(super) struct CgroupWatch {
    inotify: ReadableFd,
    watched: BTreeSet<PathBuf>,
}

impl CgroupWatch {
    /// Of nothing yet.
    ///
    /// # Errors
    /// When the system has no inotify instance left.
    pub(super) fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self { inotify: ReadableFd::new(Arc::new(inotify))?, watched: BTreeSet::new() })
    }

    /// Watches these directories from now on. Whether what was known of them may be too old.
    pub(super) fn watch(&mut self, directories: &BTreeSet<PathBuf>) -> bool {
        if *directories == self.watched {
            return false;
        }
        let wanted = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ONLYDIR;
        for directory in directories {
            if let Err(error) = inotify::add_watch(self.inotify.descriptor(), directory, wanted) {
                tracing::debug!(directory = %directory.display(), "cannot watch: {error}");
            }
        }
        self.watched.clone_from(directories);
        true
    }

    /// Completes when something happened in one of them.
    ///
    /// # Errors
    /// When the kernel gives no more word of anything.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        loop {
            self.inotify.ready().await?.clear_ready();
            if self.discard_events()? {
                // What was removed is not watched any more, though it has the same name when it is made anew.
                self.watched.clear();
                return Ok(());
            }
        }
    }

    fn discard_events(&self) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.inotify.descriptor(), &mut buffer);
        let mut any = false;
        loop {
            match reader.next() {
                Ok(_) => any = true,
                Err(rustix::io::Errno::AGAIN) => return Ok(any),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
