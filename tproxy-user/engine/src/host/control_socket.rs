//! The file of an instance's control socket: whose it is, and that none is left of the dead.

use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::{
            fs::MetadataExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use rustix::{
    fs::{Mode, fchmod},
    net::sockopt::socket_peercred,
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{HostError, directory, journal::ROOT};
use crate::mark::Mark;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// What an instance is called: the name of its control socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceName(String);

/// Not a name.
#[derive(Debug, thiserror::Error)]
#[error(
    "'{0}' cannot be the name of an instance: write at most 64 letters, digits, '-', '_' and '.', the first not a '.'"
)]
pub struct BadInstanceName(String);

impl InstanceName {
    /// What an instance with this mark is called that was given no name, in the calling thread's network namespace:
    /// `default` in the host's own, what `ip netns` calls it in others.
    #[must_use]
    pub fn of_this_namespace(mark: Mark) -> Self {
        let namespace = namespace();
        if mark == Mark::DEFAULT { Self(namespace) } else { Self(format!("{namespace}-{:x}", mark.steer())) }
    }

    fn path(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.sock", self.0))
    }
}

impl FromStr for InstanceName {
    type Err = BadInstanceName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let fits = (1..=64).contains(&text.len()) && !text.starts_with('.') && text.chars().all(allowed);
        if fits { Ok(Self(text.to_owned())) } else { Err(BadInstanceName(text.to_owned())) }
    }
}

impl TryFrom<String> for InstanceName {
    type Error = BadInstanceName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<InstanceName> for String {
    fn from(name: InstanceName) -> Self {
        name.0
    }
}

impl std::fmt::Display for InstanceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The word for the calling thread's network namespace.
fn namespace() -> String {
    let identity = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    // Not /proc/self: threads may be in namespaces of their own.
    let own = identity(Path::new("/proc/thread-self/ns/net"));
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let found = named.filter(|file| identity(&file.path()) == own).find_map(|file| {
        let name = file.file_name().into_string().ok()?;
        // Room is left for what may follow.
        (name.len() <= 50 && name.parse::<InstanceName>().is_ok()).then_some(name)
    });
    // Who may not look takes it for the host's.
    let is_hosts = identity(Path::new("/proc/1/ns/net")).is_none_or(|hosts| Some(hosts) == own);
    match (found, own) {
        (Some(name), _) => name,
        (None, Some((_, inode))) if !is_hosts => format!("netns-{inode}"),
        _ => "default".into(),
    }
}

/// The file of a living instance's control socket, removed when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
}

impl ControlSocket {
    /// Makes the socket that others ask `name` by, which from now on only the owner may connect to. What a dead instance
    /// of that name left is replaced.
    ///
    /// # Errors
    /// [`HostError::NameTaken`] when an instance of that name lives; [`HostError::ControlSocket`] when it cannot be made.
    pub fn claim(name: &InstanceName) -> Result<(Self, UnixListener), HostError> {
        Self::claim_in(Path::new(ROOT), name)
    }

    pub(super) fn claim_in(directory: &Path, name: &InstanceName) -> Result<(Self, UnixListener), HostError> {
        let _locked = lock(directory)?;
        let path = name.path(directory);
        if let Some(pid) = owner(&path) {
            return Err(HostError::NameTaken { name: name.clone(), pid, path });
        }
        remove(&path)?;
        let listener = listen(&path).map_err(failed("create", &path))?;
        Ok((Self { path }, listener))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::error!("{error}");
        }
        if let Some(directory) = self.path.parent() {
            directory::remove_if_empty(directory, directory);
        }
    }
}

/// Where the control socket of `name` is, if an instance has one.
#[must_use]
pub fn path_of(name: &InstanceName) -> PathBuf {
    name.path(Path::new(ROOT))
}

/// The names of the instances that answer.
#[must_use]
pub fn living() -> Vec<InstanceName> {
    let alive = |path: &PathBuf| is_alive(path);
    let mut names: Vec<_> =
        sockets(Path::new(ROOT)).into_iter().filter(alive).filter_map(|path| name(&path)).collect();
    names.sort();
    names
}

/// The name of the instance that is a process.
#[must_use]
pub fn of_process(pid: u32) -> Option<InstanceName> {
    let is_its = |path: &PathBuf| owner(path).and_then(|owner| owner.try_into().ok()) == Some(pid);
    sockets(Path::new(ROOT)).into_iter().find(is_its).and_then(|path| name(&path))
}

/// Removes the control sockets that dead instances left, and says which those were.
///
/// # Errors
/// [`HostError::ControlSocket`]
pub fn remove_dead() -> Result<Vec<PathBuf>, HostError> {
    remove_dead_in(Path::new(ROOT))
}

pub(super) fn remove_dead_in(directory: &Path) -> Result<Vec<PathBuf>, HostError> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let _locked = lock(directory)?;
    let mut dead = sockets(directory);
    dead.retain(|path| !is_alive(path));
    dead.iter().try_for_each(|path| remove(path))?;
    Ok(dead)
}

fn sockets(directory: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(directory).into_iter().flatten().flatten().map(|file| file.path());
    files.filter(|path| name(path).is_some()).collect()
}

fn name(path: &Path) -> Option<InstanceName> {
    let file = path.file_name()?.to_str()?;
    file.strip_suffix(".sock")?.parse().ok()
}

/// The process that listens; it need not accept.
fn owner(path: &Path) -> Option<i32> {
    let unknown = 0;
    match UnixStream::connect(path) {
        Ok(stream) => Some(socket_peercred(stream).map_or(unknown, |peer| peer.pid.as_raw_nonzero().get())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            None
        }
        // As many wait as may.
        Err(_) => Some(unknown),
    }
}

fn is_alive(path: &Path) -> bool {
    owner(path).is_some()
}

/// As long as it is held, nobody else claims or removes a socket.
fn lock(directory: &Path) -> Result<directory::LockedDirectory, HostError> {
    directory::lock(directory, directory).map_err(failed("lock", directory))
}

/// The mode that the socket has before it is bound is the file's (`unix_bind_bsd()`), so that nobody else can connect,
/// not even for a moment.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    fchmod(socket.as_fd(), Mode::RUSR | Mode::WUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(std::os::fd::OwnedFd::from(socket).into())
}

fn remove(path: &Path) -> Result<(), HostError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostError + use<> {
    let path = path.to_owned();
    move |source| HostError::ControlSocket { action, path, source }
}
