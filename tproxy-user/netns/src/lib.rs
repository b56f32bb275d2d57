//! A small network of namespaces on this machine, for the demo, the tests, the benchmark and the probes.
//!
//! Everything is set up with the `ip` command, in the words an engineer would type, and everything is
//! gone when its guard is dropped, also while a panic unwinds. Nothing touches the namespace we started in.

use std::{fmt, io, process::ExitStatus, time::Duration};

mod namespace;
mod nginx;
mod process;
mod topology;
mod tproxy;

pub use namespace::Namespace;
pub use nginx::Nginx;
pub use process::Proc;
pub use topology::{Family, Topology};
pub use tproxy::Tproxy;

/// The longest that anything here is waited for: so long that on the busiest machine only what does not come at all takes it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What can go wrong while building or using a test network.
#[derive(thiserror::Error)]
pub enum Error {
    /// Making namespaces takes `CAP_SYS_ADMIN`.
    #[error("network namespaces can be made by root only: run this as root")]
    NotRoot,
    /// A program the set-up runs is not installed.
    #[error("the program '{tool}' is missing: install it with `apt-get install {package}`")]
    MissingTool {
        /// The program.
        tool: String,
        /// The Debian package it comes in.
        package: String,
    },
    /// A command of the set-up ended with an error.
    #[error("`{command}` failed ({status}): {stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it had to say.
        stderr: String,
    },
    /// An awaited event did not come.
    #[error("{command}: waited up to {timeout:?} for {event}; its output was:\n{output}")]
    Timeout {
        /// The command line of the process that was watched.
        command: String,
        /// What was waited for.
        event: String,
        /// For how long.
        timeout: Duration,
        /// Everything the process wrote.
        output: String,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// As Display: what a test unwraps is read by people.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Eight hexadecimal digits, different on every call: names of parallel runs never collide.
#[must_use]
pub fn random_suffix() -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // Each RandomState is keyed anew, from the system's randomness and a counter.
    format!("{:08x}", RandomState::new().build_hasher().finish() & 0xffff_ffff)
}

/// # Errors
/// [`Error::MissingTool`] when no directory of `PATH` (or an `sbin`) holds `tool`.
pub fn require_tool(tool: &str) -> Result<(), Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = tool.contains('/')
        || std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|directory| directory.join(tool).is_file());
    if found {
        return Ok(());
    }
    let package = match tool {
        "ip" | "ss" => "iproute2",
        "nginx" => "nginx-light",
        "nsenter" | "setpriv" => "util-linux",
        other => other,
    };
    Err(Error::MissingTool { tool: tool.into(), package: package.into() })
}
