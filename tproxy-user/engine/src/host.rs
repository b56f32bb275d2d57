//! Everything tproxy changes on, or asks from, the host outside of BPF: rules, routes and sysctls with the
//! journal that takes them back, links, local addresses, lingering sockets.
//!
//! All of it concerns the network namespace of the *calling thread*.

use std::{fmt, io, path::PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::mark::Mark;

pub mod admission;
pub mod clsact;
pub mod connections;
pub mod control_socket;
mod directory;
pub(crate) mod fault;
pub mod journal;
pub mod lingering;
pub mod links;
pub mod local_table;
pub(crate) mod nat;
mod netlink;
pub mod nftables;
pub mod pins;
pub mod policy;
pub mod preflight;
pub(crate) mod route;
pub mod sysctl;

pub use control_socket::{BadInstanceName, ControlSocket, InstanceName};
pub use journal::{Change, Ensured, Identity, Journal, OnRecord, Reclaimed, Standing, cleanup, on_record};

/// Side of an interface, seen from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Packets that arrive.
    Ingress,
    /// Packets that leave.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// Why the host could not be changed or asked. Every text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A running instance owns what this one was given.
    #[error(
        "another tproxy (pid {pid}) runs in this network namespace with {what}; stop it, or choose another {which}",
        which = what.word()
    )]
    InUse {
        /// Of the running instance.
        pid: u32,
        /// What both want.
        what: Owned,
    },
    /// A running instance whose journal is elsewhere, as that of a container is, has what this one was given.
    #[error(
        "another tproxy runs in this network namespace with the mark {mark} (it made the {change}), and keeps its journal in a /run of its own; stop it, or choose another mark and table"
    )]
    InUseElsewhere {
        /// What it made.
        change: String,
        /// What both want.
        mark: Mark,
    },
    /// A running instance of another version has the mark.
    #[error(
        "another tproxy, of another version, runs in this network namespace with the mark {mark}; stop it, or choose another mark and table"
    )]
    Strange {
        /// What both want.
        mark: Mark,
    },
    /// An instance that is gone has flows rejected, and this one does not take over from it.
    #[error(
        "a tproxy that is gone (pid {pid}) has flows rejected with {what} (on_exit = \"reject\"); take over with the same mark, table and priority, choose another {which}, or run `tproxy cleanup`",
        which = what.word()
    )]
    Held {
        /// Of the instance that is gone.
        pid: u32,
        /// What both want.
        what: Owned,
    },
    /// Links cannot be pinned.
    #[error(
        "on_exit = \"reject\" pins links in {0}, and no BPF file system is mounted there; run: mount -t bpf -o mode=0700 bpf {0}"
    )]
    NoBpfFileSystem(&'static str),
    /// Somebody else's directory is where links are to be pinned.
    #[error(
        "{} belongs to user {uid}, who could replace what is pinned there: remove it, or mount a BPF file system of your own (mount -t bpf -o mode=0700 bpf /sys/fs/bpf)",
        path.display()
    )]
    ForeignPins {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// Others can write to a directory where links are to be pinned.
    #[error(
        "others can write to {} (mode {mode:o}), and could replace what is pinned there; run: chmod go-w {}",
        path.display(),
        path.display()
    )]
    SharedPins {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The pin of a link could not be made or removed.
    #[error("cannot {action} the pin {}: {source}", path.display())]
    Pin {
        /// What was tried.
        action: &'static str,
        /// The pin or its directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Somebody else's `ip rule` selects by bits of our mark.
    #[error(
        "the mark {mark} is in use by somebody else's rule: {rule}; choose another mark, or delete the rule (ip rule del) if it is a leftover"
    )]
    MarkTaken {
        /// Ours.
        mark: Mark,
        /// Theirs, as `ip rule` writes it.
        rule: String,
    },
    /// Somebody else has routes in our table.
    #[error(
        "the routing table {table} is in use by somebody else's route: {route}; choose another table, or empty it (ip route flush table {table}) if it is a leftover"
    )]
    TableTaken {
        /// Ours.
        table: u32,
        /// Theirs, as `ip route` writes it.
        route: String,
    },
    /// The journal cannot be kept, so nothing may be changed.
    #[error(
        "cannot {action} {}: {source}; tproxy journals there what it changes on the host, {}",
        path.display(),
        remedy(source)
    )]
    Journal {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// An instance of this name lives.
    #[error(
        "another tproxy (pid {pid}) is called '{name}' and answers at {}; stop it, or choose another --name, and in the same network namespace another --mark and --table",
        path.display()
    )]
    NameTaken {
        /// The name.
        name: InstanceName,
        /// Of the instance; zero if it cannot be told.
        pid: i32,
        /// Its control socket.
        path: PathBuf,
    },
    /// The control socket cannot be made or removed.
    #[error(
        "cannot {action} {}: {source}; tproxy has its control socket there, {}",
        path.display(),
        remedy(source)
    )]
    ControlSocket {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("cannot {action}: {source}")]
    Netlink {
        /// What was tried, in words.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A kernel without tcx attaches programs by a qdisc that it lacks.
    #[error(
        "the kernel has no qdisc clsact for a program on {0}: run modprobe sch_ingress (CONFIG_NET_SCH_INGRESS), or boot Linux 6.6, which needs none"
    )]
    NoClsact(String),
    /// The kernel does not list sockets.
    #[error(
        "the kernel does not list TCP sockets: run modprobe tcp_diag (CONFIG_INET_DIAG); without it a stop does not wait for what closed connections still send, and sockets that linger for a minute swallow forwarded packets of the same addresses and ports unless net.ipv4.tcp_early_demux=0"
    )]
    NoSockDiag,
    /// A rule of ours in a firewall.
    #[error("cannot {action} the {rule}: {said}")]
    Firewall {
        /// What was tried.
        action: &'static str,
        /// What it is and where.
        rule: String,
        /// By the firewall's own program.
        said: String,
    },
    /// A sysctl could not be read or written.
    #[error("cannot {action} the sysctl {}: {source}", path.display())]
    Sysctl {
        /// What was tried.
        action: &'static str,
        /// Below `/proc/sys`.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A sysctl has to have another value, and this container cannot give it one.
    #[error(
        "{assignment} is needed, and /proc/sys is read-only here: set it where the container is made (docker run --sysctl \
         {assignment}, securityContext.sysctls of a pod), or have /proc/sys writable"
    )]
    SysctlReadOnly {
        /// As `sysctl -w` takes it.
        assignment: String,
    },
    /// Not a name that an interface or a sysctl can have.
    #[error("'{0}' cannot be the name of an interface or of a sysctl")]
    BadName(String),
    /// Sockets with foreign addresses are left that the kernel does not let us destroy.
    #[error(
        "{left} sockets with foreign addresses cannot be destroyed ({source}): the kernel needs CONFIG_INET_DIAG_DESTROY, and 6.0 for those in TIME_WAIT; until they time out (a minute), net.ipv4.tcp_early_demux=0 keeps them from swallowing forwarded packets"
    )]
    CannotDestroy {
        /// How many are left.
        left: usize,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Connections whose local address is gone are left that the kernel does not let us end.
    #[error(
        "{left} connections whose local address is gone cannot be reset ({source}): the kernel needs CONFIG_INET_DIAG_DESTROY; they end when their time limits do"
    )]
    CannotAbort {
        /// How many are left.
        left: usize,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The process lacks a privilege.
    #[error(
        "the capability {0} is missing; run tproxy as root, or grant it (setcap, or AmbientCapabilities= in a systemd unit)"
    )]
    MissingCapability(&'static str),
    /// Steered packets are delivered through `lo`.
    #[error("the loopback interface of this network namespace is down; run: ip link set lo up")]
    LoopbackDown,
    /// The kernel lacks a feature that there is no way around.
    #[error("the kernel {running} is too old: {feature} needs Linux {needs} or newer")]
    KernelTooOld {
        /// Release of the running kernel.
        running: String,
        /// What is missing.
        feature: &'static str,
        /// First release that has it.
        needs: &'static str,
    },
}

/// What exactly one instance of a network namespace may own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owned {
    /// A mark that can be taken for ours.
    Mark(Mark),
    /// The routing table.
    Table(u32),
}

impl Owned {
    const fn word(self) -> &'static str {
        match self {
            Self::Mark(_) => "mark",
            Self::Table(_) => "table",
        }
    }
}

impl fmt::Display for Owned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mark(mark) => write!(f, "the overlapping mark {mark}"),
            Self::Table(table) => write!(f, "the same table {table}"),
        }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room there",
        _ => "make it writable",
    }
}

/// Rules, routes, files and interfaces that somebody took away before us.
fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::SRCH | Errno::NODEV))
}

#[cfg(test)]
mod tests;
