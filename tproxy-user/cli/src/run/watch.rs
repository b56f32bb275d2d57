//! Word of changes of the configuration file and the files that it names, also where a symbolic link on the way to one is
//! replaced, as Kubernetes does with `..data`.

use std::{
    collections::BTreeSet,
    fs, io,
    mem::MaybeUninit,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use tproxy::socket::ReadableFd;

/// As many links as the kernel follows (`MAXSYMLINKS`).
const MOST_LINKS: usize = 40;

/// Files that are watched.
pub(super) struct FileWatch {
    file: PathBuf,
    inotify: ReadableFd,
    seen: Vec<Option<Version>>,
}

/// Tells a file from what was there before.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Version {
    place: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

impl FileWatch {
    /// Of a configuration file.
    ///
    /// # Errors
    /// When the system has no inotify instance left.
    pub(super) fn new(file: PathBuf) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let inotify = ReadableFd::new(Arc::new(inotify))?;
        let mut watch = Self { file, inotify, seen: Vec::new() };
        watch.look();
        Ok(watch)
    }

    /// Completes when a file is another than before.
    ///
    /// # Errors
    /// When the kernel gives no more word of anything.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        loop {
            // Before they are taken: what comes later is told again.
            self.inotify.ready().await?.clear_ready();
            self.discard_events()?;
            let before = self.seen.clone();
            self.look();
            if self.seen != before {
                return Ok(());
            }
        }
    }

    /// What happened is found out by looking.
    fn discard_events(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.inotify.descriptor(), &mut buffer);
        loop {
            match reader.next() {
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Watches what there is now, before it is looked at: what comes later is told.
    fn look(&mut self) {
        let files: Vec<PathBuf> = tproxy::config::files(&self.file);
        let directories: BTreeSet<PathBuf> = files.iter().flat_map(|file| directories(file)).collect();
        let wanted =
            WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::ONLYDIR;
        for directory in &directories {
            // A directory that is not there yet is word of a change in the one above it.
            if let Err(error) = inotify::add_watch(self.inotify.descriptor(), directory, wanted) {
                tracing::debug!(directory = %directory.display(), "cannot watch: {error}");
            }
        }
        self.seen = files.iter().map(|file| version(file)).collect();
    }
}

fn version(file: &Path) -> Option<Version> {
    let metadata = fs::metadata(file).ok()?;
    Some(Version {
        place: (metadata.dev(), metadata.ino()),
        size: metadata.size(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

/// Where something has to happen before `path` leads to another file: the directory that it is in, and those of the links on
/// the way.
fn directories(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo: Vec<PathBuf> = Vec::new();
    let push = |todo: &mut Vec<PathBuf>, path: &Path| {
        todo.extend(
            path.components().rev().map(|component: Component<'_>| PathBuf::from(component.as_os_str())),
        );
    };
    let mut at = PathBuf::from(".");
    push(&mut todo, path);
    let mut links = 0;
    while let Some(step) = todo.pop() {
        let next = at.join(&step);
        match fs::read_link(&next) {
            Ok(target) if links < MOST_LINKS => {
                links += 1;
                found.push(at.clone());
                push(&mut todo, &target);
            }
            _ if todo.is_empty() => found.push(at.clone()),
            _ => at = next,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, time::Duration};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A directory of our own, which goes with this.
    struct Directory(PathBuf);

    impl Directory {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("tproxy-{}", tproxy_netns::random_suffix()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    async fn assert_changed(watch: &mut FileWatch) {
        tokio::time::timeout(PATIENCE, watch.changed()).await.expect("word of a change").unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_written_or_replaced_has_changed() {
        let directory = Directory::new();
        let file = directory.0.join("tproxy.toml");
        fs::write(&file, "").unwrap();
        let mut watch = FileWatch::new(file.clone()).unwrap();
        fs::write(&file, "x = 1").unwrap();
        assert_changed(&mut watch).await;
        fs::write(directory.0.join("new"), "x = 2").unwrap();
        fs::rename(directory.0.join("new"), &file).unwrap();
        assert_changed(&mut watch).await;
        // Nothing of ours.
        fs::write(directory.0.join("other"), "x = 2").unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(200), watch.changed()).await.is_err());
    }

    #[tokio::test]
    async fn a_link_on_the_way_that_is_replaced_is_a_change() {
        let directory = Directory::new();
        let path = |name: &str| directory.0.join(name);
        for version in ["..1", "..2"] {
            fs::create_dir(path(version)).unwrap();
            fs::write(path(version).join("tproxy.toml"), version).unwrap();
        }
        symlink("..1", path("..data")).unwrap();
        symlink("..data/tproxy.toml", path("tproxy.toml")).unwrap();
        let mut watch = FileWatch::new(path("tproxy.toml")).unwrap();
        symlink("..2", path("..tmp")).unwrap();
        fs::rename(path("..tmp"), path("..data")).unwrap();
        assert_changed(&mut watch).await;
        // What is in the new place is watched from now on.
        fs::write(path("..2").join("tproxy.toml"), "more").unwrap();
        assert_changed(&mut watch).await;
    }

    #[tokio::test]
    async fn the_files_of_sets_are_watched_too() {
        let directory = Directory::new();
        let path = |name: &str| directory.0.join(name);
        fs::write(path("blocked"), "192.0.2.0/24").unwrap();
        fs::write(path("tproxy.toml"), "sets.prefixes.blocked = { file = \"blocked\" }").unwrap();
        let mut watch = FileWatch::new(path("tproxy.toml")).unwrap();
        fs::write(path("blocked"), "192.0.2.0/25").unwrap();
        assert_changed(&mut watch).await;
    }
}
