//! Against the kernel, in network namespaces that vanish with the thread that made them.
//! What the host looks like is asked of iproute2, which shares no code with us.

mod clsact;
mod control_socket;
mod journal;
mod left_over;
mod reading;

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    Change, Direction, HostError, Identity, Journal, Reclaimed,
    journal::cleanup_in,
    lingering,
    links::{self, Layer, Monitor},
    local_table::{LocalTable, routed_interfaces},
    preflight,
    sysctl::Sysctl,
};
use crate::{family::Family, mark::Mark};

const IDENTITY: Identity = Identity { mark: Mark::DEFAULT, table: 2222, priority: 222 };
const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1);

/// Runs `body` in a network namespace of its own, with `lo` up.
fn in_namespace(body: impl FnOnce() + Send + 'static) {
    let ran = thread::spawn(|| {
        #[expect(deprecated, reason = "moves this thread alone, and shares no file descriptors")]
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).expect("these tests need root");
        run("ip link set lo up");
        body();
    });
    if let Err(panic) = ran.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Output of a command that must succeed.
fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let out = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Everything a journal may change.
fn host() -> [String; 8] {
    [
        "ip -4 rule",
        "ip -6 rule",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "cat /proc/sys/net/ipv4/conf/lo/accept_local",
        "cat /proc/sys/net/ipv4/conf/lo/rp_filter",
        "cat /proc/sys/net/ipv6/conf/lo/accept_ra",
        "tc qdisc show dev lo",
    ]
    .map(run)
}

/// A directory for journals, removed when dropped.
struct Root(PathBuf);

impl Root {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("tproxy-journal-{}-{count}", std::process::id())))
    }

    fn begin(&self) -> Result<Journal, HostError> {
        Journal::begin_in(&self.0, IDENTITY)
    }

    fn cleanup(&self) -> Vec<Reclaimed> {
        cleanup_in(&self.0).unwrap()
    }

    /// The only journal in it.
    fn file(&self) -> PathBuf {
        let namespace = fs::read_dir(&self.0).unwrap().next().unwrap().unwrap().path();
        let mut files = fs::read_dir(namespace).unwrap().map(|file| file.unwrap().path());
        files.find(|path| path.extension().is_some_and(|extension| extension == "json")).unwrap()
    }
}

impl Root {
    fn edit(&self, edit: impl FnOnce(&mut serde_json::Value)) {
        let file = self.file();
        let mut record = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        edit(&mut record);
        fs::write(file, record.to_string()).unwrap();
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn accept_local() -> Change {
    let sysctl = Sysctl::new("lo", Family::V4, "accept_local").unwrap();
    Change::Sysctl { sysctl, value: "1".into() }
}

/// One of each kind and family.
fn changes() -> Vec<Change> {
    let mut changes = vec![accept_local()];
    for family in Family::BOTH {
        changes.push(Change::LocalRoute { family });
        changes.push(Change::Rule { family, iif: "lo".into() });
        changes.push(Change::Rule { family, iif: "later0".into() });
    }
    changes.push(Change::TcFilter { interface: "lo".into(), index: 1, direction: Direction::Ingress });
    changes
}

fn apply_all(journal: &mut Journal) {
    for change in changes() {
        journal.apply(change).unwrap();
    }
}

const ROOT_OF_VICTIM: &str = "TPROXY_TEST_JOURNAL_ROOT";

/// Adds an address, and waits until it is the host's: for IPv6 the kernel leaves that to a work queue
/// (`addrconf_dad_work()`), `nodad` or not.
fn add_v6_address(address: &str, device: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let wanted = address.split('/').next().unwrap().parse().unwrap();
    runtime.block_on(async {
        let mut monitor = Monitor::new().unwrap();
        run(&format!("ip -6 addr add {address} dev {device} nodad"));
        while !LocalTable::load(0).unwrap().contains(wanted) {
            monitor.next().await.unwrap();
        }
    });
}

#[test]
fn preflight_wants_lo_up() {
    in_namespace(|| {
        preflight::check().unwrap();
        run("ip link set lo down");
        assert!(matches!(preflight::check(), Err(HostError::LoopbackDown)));
    });
}
