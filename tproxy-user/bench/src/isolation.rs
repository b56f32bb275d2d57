//! Nothing is left behind, whatever ends us.
//!
//! Everything runs in a PID namespace, whose processes the kernel kills with its first one, and in a mount namespace
//! with a `/run` of its own: named network namespaces, the journal and the lock of iptables are below it and vanish
//! with it. So `Ctrl-C` and `kill -9` need no one to tidy up.

use std::{ffi::CStr, fs, io, process::Command};

use anyhow::Context as _;
use rustix::{
    mount::{MountFlags, mount},
    process::{Resource, Rlimit, getpid, getrlimit, setrlimit},
};

/// Where configurations of the programs we start are written.
pub(super) const DIRECTORY: &str = "/run/tproxy-bench";

/// Whether this process is the first of its PID namespace, as [`run_inside`] has it.
pub(super) fn is_inside() -> bool {
    getpid().is_init()
}

/// Runs this very command line inside, and returns its exit code.
///
/// # Errors
/// When it cannot be started.
pub(super) fn run_inside() -> anyhow::Result<i32> {
    // util-linux; the death signal reaches it when we end, however we do, and --kill-child passes it on.
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "--"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .status()
        .context("cannot start setpriv and unshare, of the Debian package util-linux")?;
    Ok(status.code().unwrap_or(1))
}

/// Gives the inside its `/run`, and room for thousands of connections.
///
/// # Errors
/// Whatever the kernel refuses.
pub(super) fn furnish() -> anyhow::Result<()> {
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None::<&CStr>).context("a tmpfs on /run")?;
    fs::create_dir(DIRECTORY).context(DIRECTORY)?;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .map_err(io::Error::from)
        .context("limit of open files")
}
