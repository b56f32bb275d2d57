//! Pins: names for links in the BPF file system, by which programs stay attached when their process is gone.
//!
//! `/sys/fs/bpf/tproxy/<inode of the network namespace>/<steer mark>/` has those of one instance.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::{fs::statfs, process::geteuid};

use super::{HostError, directory, is_absent, journal::namespace_inode};
use crate::{mark::Mark, socket::PinnedLink};

const FILE_SYSTEM: &str = "/sys/fs/bpf";

/// linux/magic.h
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Where the instance with this mark has its pins, in the network namespace of the calling thread.
///
/// # Errors
/// When the namespace cannot be looked at.
pub fn directory(mark: Mark) -> Result<PathBuf, HostError> {
    let inode = namespace_inode()?;
    Ok(Path::new(FILE_SYSTEM).join("tproxy").join(inode.to_string()).join(format!("{:08x}", mark.steer())))
}

/// Whether there is a BPF file system to have them in.
///
/// # Errors
/// [`HostError::NoBpfFileSystem`]
pub fn require_file_system() -> Result<(), HostError> {
    let is_bpf = statfs(FILE_SYSTEM).is_ok_and(|found| found.f_type as u64 == BPF_FS_MAGIC);
    if is_bpf { Ok(()) } else { Err(HostError::NoBpfFileSystem(FILE_SYSTEM)) }
}

/// Makes the directory, in which nobody else can put what is taken for ours, or take away what is.
pub(super) fn create(directory: &Path) -> Result<(), HostError> {
    require_file_system()?;
    let root = Path::new(FILE_SYSTEM);
    let below = |path: &&Path| *path != root && path.starts_with(root);
    require_unshared(root, Sticky::Suffices)?;
    directory::make(directory).map_err(failed("create", directory))?;
    let ours: Vec<_> = directory.ancestors().take_while(below).collect();
    ours.into_iter().rev().try_for_each(|path| require_unshared(path, Sticky::IsNotEnough))
}

/// Whether others may write to a directory where they can rename and remove only what is theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sticky {
    Suffices,
    IsNotEnough,
}

/// Refuses a directory that is somebody else's, or that others can write to.
fn require_unshared(path: &Path, sticky: Sticky) -> Result<(), HostError> {
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    const STICKY: u32 = 0o1000;
    let found = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    let path = || path.to_owned();
    if !found.is_dir() || ![0, geteuid().as_raw()].contains(&found.uid()) {
        return Err(HostError::ForeignPins { path: path(), uid: found.uid() });
    }
    let is_sticky = found.mode() & STICKY != 0 && sticky == Sticky::Suffices;
    if found.mode() & WRITABLE_BY_OTHERS == 0 || is_sticky {
        Ok(())
    } else {
        Err(HostError::SharedPins { path: path(), mode: found.mode() & 0o7777 })
    }
}

/// Detaches what is pinned in the directory, and removes that. `NotFound` when there was none.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    for pin in fs::read_dir(directory)? {
        let pin = pin?.path();
        detach(&pin, PinnedLink::open(&pin));
        fs::remove_file(&pin)?;
    }
    fs::remove_dir(directory)?;
    // Fails while another instance has pins there, as it should.
    let parents = directory.ancestors().skip(1).take(2);
    parents.take_while(|parent| fs::remove_dir(parent).is_ok()).for_each(drop);
    Ok(())
}

/// Detaches what has this name, and removes that, if it is there.
///
/// # Errors
/// When the file system refuses.
pub fn remove_one(pin: &Path) -> Result<(), HostError> {
    detach(pin, PinnedLink::open(pin));
    match fs::remove_file(pin) {
        Err(error) if !is_absent(&error) => Err(failed("remove", pin)(error)),
        _ => Ok(()),
    }
}

/// Gives the pin `new` the name `pin`, and detaches what had that name before.
///
/// # Errors
/// When the file system refuses.
pub fn replace(new: &Path, pin: &Path) -> Result<(), HostError> {
    let before = PinnedLink::open(pin);
    fs::rename(new, pin).map_err(failed("rename", new))?;
    detach(pin, before);
    Ok(())
}

/// Nothing, where there is no such pin; and what the kernel refuses to detach now it does in its own time.
fn detach(pin: &Path, link: io::Result<PinnedLink>) {
    match link.and_then(PinnedLink::detach) {
        Err(error) if !is_absent(&error) => {
            tracing::debug!("cannot detach {} at once: {error}", pin.display())
        }
        _ => {}
    }
}

/// The pins in a directory.
///
/// # Errors
/// When it cannot be read.
pub fn list(directory: &Path) -> Result<Vec<PathBuf>, HostError> {
    let names =
        || -> io::Result<_> { fs::read_dir(directory)?.map(|pin| pin.map(|pin| pin.path())).collect() };
    names().map_err(failed("list", directory))
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> HostError {
    let path = path.to_owned();
    move |source| HostError::Pin { action, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown};

    use super::*;

    #[test]
    fn a_directory_that_others_own_or_can_write_to_is_refused() {
        let path = std::env::temp_dir().join(format!("tproxy-{}", tproxy_netns::random_suffix()));
        fs::create_dir(&path).unwrap();
        let looked = |mode, sticky| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            require_unshared(&path, sticky)
        };
        assert!(looked(0o700, Sticky::IsNotEnough).is_ok());
        assert!(looked(0o755, Sticky::IsNotEnough).is_ok());
        assert!(looked(0o1777, Sticky::Suffices).is_ok());
        for (mode, sticky) in
            [(0o777, Sticky::Suffices), (0o770, Sticky::IsNotEnough), (0o1777, Sticky::IsNotEnough)]
        {
            let refused = looked(mode, sticky).unwrap_err();
            assert!(matches!(refused, HostError::SharedPins { .. }), "{mode:o}: {refused}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        chown(&path, Some(65_534), None).unwrap();
        let refused = require_unshared(&path, Sticky::Suffices).unwrap_err();
        assert!(refused.to_string().contains("belongs to user 65534"), "{refused}");
        fs::remove_dir(&path).unwrap();
    }
}
