//! Files are regular and of limited size: what never ends, or begins only when somebody writes, is no configuration.

use std::{
    fs::{Metadata, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Bytes of a file. As many members as the tables hold, with a comment each, are less.
const LARGEST: u64 = 32 << 20;

/// The whole file.
///
/// # Errors
/// The system's, or that it is none to be read.
pub(super) fn read(file: &Path) -> io::Result<Vec<u8>> {
    read_if(file, |_| Ok(()))
}

/// The whole file, which nobody but its owner can read.
///
/// # Errors
/// As above.
pub(super) fn read_secret(file: &Path) -> io::Result<Vec<u8>> {
    const OTHERS: u32 = 0o077;
    read_if(file, |metadata| match metadata.mode() & OTHERS {
        0 => Ok(()),
        _ => Err(io::Error::other("others than its owner may read it: chmod 600")),
    })
}

fn read_if(file: &Path, allows: impl FnOnce(&Metadata) -> io::Result<()>) -> io::Result<Vec<u8>> {
    // A FIFO would be waited for until somebody writes to it, and a device might do something.
    let flags = (rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits();
    let opened = OpenOptions::new().read(true).custom_flags(flags as i32).open(file)?;
    let metadata = opened.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    allows(&metadata)?;
    let mut bytes = Vec::new();
    if metadata.len() <= LARGEST {
        opened.take(LARGEST + 1).read_to_end(&mut bytes)?;
    }
    if metadata.len() > LARGEST || bytes.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("it is larger than {} MiB", LARGEST >> 20)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn what_never_ends_or_begins_is_refused_at_once() {
        let directory = std::env::temp_dir().join(format!("tproxy-{}", tproxy_netns::random_suffix()));
        fs::create_dir(&directory).unwrap();
        let path = |name: &str| directory.join(name);
        fs::write(path("good"), "x = 1").unwrap();
        assert_eq!(read(&path("good")).unwrap(), b"x = 1");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        File::create(path("sparse")).unwrap().set_len(LARGEST + 1).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path("zero")).unwrap();
        for (name, why) in
            [("fifo", "no regular file"), ("zero", "no regular file"), ("sparse", "larger than 32 MiB")]
        {
            let error = read(&path(name)).unwrap_err().to_string();
            assert!(error.contains(why), "{name}: {error}");
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
