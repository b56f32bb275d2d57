//! The host is left as it was.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use rustix::process::Signal;

use crate::support::*;

/// All that a start may change in a namespace, by the command or file that shows it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(BTreeMap<String, String>);

impl Snapshot {
    pub(crate) fn take(namespace: &Namespace) -> Self {
        let commands = [
            "ip -4 rule show",
            "ip -6 rule show",
            "ip -4 route show table all",
            "ip -6 route show table all",
            "ip -details link show",
            "ip address show",
            // tc, tcx, xdp and the flow dissector.
            "bpftool net show",
            "tc qdisc show",
        ];
        let mut parts: BTreeMap<_, _> = commands
            .iter()
            .map(|command| {
                (command.to_string(), namespace.run(command).unwrap_or_else(|error| panic!("{error}")))
            })
            .collect();
        // `bpftool net` leaves the sk_lookup programs out.
        parts.insert("bpftool link, of this namespace".into(), netns_links(namespace));
        parts.extend(namespace.enter(|| sysctls(Path::new("/proc/sys/net"))));
        Self(parts)
    }

    /// Asserts that nothing differs from the earlier state `self`.
    #[track_caller]
    pub(crate) fn assert_same(&self, namespace: &Namespace, context: &dyn std::fmt::Display) {
        let now = Self::take(namespace);
        let mut differences = String::new();
        for key in self.0.keys().chain(now.0.keys().filter(|key| !self.0.contains_key(*key))) {
            let (before, after) = (self.0.get(key), now.0.get(key));
            if before != after {
                writeln!(differences, "{key}\n  before: {before:?}\n  after:  {after:?}").unwrap();
            }
        }
        assert!(differences.is_empty(), "the host was changed:\n{differences}{context}");
    }
}

fn netns_links(namespace: &Namespace) -> String {
    use std::os::unix::fs::MetadataExt;
    let inode = fs::metadata(namespace.path()).unwrap().ino();
    // bpftool walks the links of the whole machine, and gives up when one of another test vanishes under it.
    let list = || match namespace.run("bpftool link show") {
        Err(error) if error.to_string().contains("can't get link by id") => None,
        listed => Some(listed.unwrap_or_else(|error| panic!("{error}"))),
    };
    let links = (0..100).find_map(|_| list()).expect("bpftool link show");
    let ours = links.lines().filter(|line| line.contains(&format!("netns_ino {inode} ")));
    // Link and program ids differ by their nature.
    ours.map(|line| line.split("netns_ino").nth(1).unwrap_or_default().to_owned() + "\n").collect()
}

/// Every readable sysctl below `directory`, but for those that change by themselves.
fn sysctls(directory: &Path) -> BTreeMap<String, String> {
    const ALIVE: [&str; 4] = ["nf_conntrack_count", "rt_cache", "file-nr", "stable_secret"];
    let mut found = BTreeMap::new();
    let mut directories = vec![PathBuf::from(directory)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if let Ok(value) = fs::read_to_string(&path)
                && !ALIVE.iter().any(|name| path.ends_with(name))
            {
                found.insert(path.display().to_string(), value);
            }
        }
    }
    found
}

/// One run of each scope and source: together they use all there is to leave behind.
const RUNS: [&str; 5] = [
    "--scope forwarded --interface lan --to 0.0.0.0/0 --to ::/0 --port 80 --action direct",
    "--scope forwarded --interface lan --to 0.0.0.0/0 --to ::/0 --port 80 --action direct --source client",
    "--scope outbound --to 0.0.0.0/0 --to ::/0 --port 80 --action direct",
    "--scope outbound --interface lo --to 8.8.8.8 --port 80 --action respond=hello",
    "--scope inbound --port 80 --action direct --source client",
];

/// Ends a run somehow; the host has to be as before.
fn assert_clean_after(end: impl Fn(&World, &mut Tproxy)) {
    let world = World::new();
    let _application = Nginx::start(&world.net.gateway).unwrap();
    let before = Snapshot::take(&world.net.gateway);
    for (run, engine) in RUNS.iter().flat_map(|run| ENGINES.map(|engine| (run, engine))) {
        let mut tproxy = world.tproxy(&format!("{run} --steer {engine}"));
        assert_ne!(before, Snapshot::take(&world.net.gateway), "{run}: the snapshot sees nothing of a run");
        for family in Family::ALL {
            // Some of these are intercepted, whichever the scope.
            world.curl(family.server(), 80);
            world.curl(family.lan(), 80);
            curl(&world.net.gateway, "", family.server(), 80);
        }
        end(&world, &mut tproxy);
        before.assert_same(&world.net.gateway, &format!("{run} {engine}\n{}", *tproxy));
    }
}

#[test]
fn sigterm_leaves_the_host_as_it_was() {
    assert_clean_after(|_, tproxy| end_by(tproxy, Signal::TERM));
}

#[test]
fn sigint_leaves_the_host_as_it_was() {
    assert_clean_after(|_, tproxy| end_by(tproxy, Signal::INT));
}

fn end_by(tproxy: &mut Tproxy, signal: Signal) {
    tproxy.signal(signal);
    let status = tproxy.wait(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    assert!(status.success(), "{status}\n{}", **tproxy);
}

#[test]
fn cleanup_after_kill_9_leaves_the_host_as_it_was() {
    assert_clean_after(|world, tproxy| {
        tproxy.kill9();
        assert_cleanup(&world.net.gateway);
    });
}

#[test]
fn the_next_start_clears_what_kill_9_left() {
    let world = World::new();
    let before = Snapshot::take(&world.net.gateway);
    for run in RUNS {
        world.tproxy(run).kill9();
        // Another table and mark: what is cleared is what the journal names, not what the flags do.
        let mut next = world.tproxy(
            "--scope forwarded --interface lan --port 1 --mark 0x100000/0x300000 --table 4711 --action pass",
        );
        end_by(&mut next, Signal::TERM);
        before.assert_same(&world.net.gateway, &format!("{run}\n{}", *next));
    }
}

#[test]
fn cleanup_on_a_clean_host_has_nothing_to_do() {
    let world = World::new();
    let before = Snapshot::take(&world.net.gateway);
    for _twice in 0..2 {
        assert_cleanup(&world.net.gateway);
    }
    before.assert_same(&world.net.gateway, &"");
}

#[test]
fn cleanup_leaves_a_running_instance_alone() {
    let world = World::new();
    let tproxy = world.tproxy(&format!("{FORWARDED} --action respond=hello"));
    let before = Snapshot::take(&world.net.gateway);
    // Refused or without effect, either way it names nothing it undid.
    tproxy_output(&world.net.gateway, "cleanup");
    before.assert_same(&world.net.gateway, &*tproxy);
    world.curl(Family::V4.public(), 80).assert_body("hello", &*tproxy);
}

#[test]
fn a_foreign_rule_route_and_sysctl_survive() {
    let world = World::new();
    let gateway = &world.net.gateway;
    gateway
        .ip("rule add fwmark 0x77 lookup 77 priority 77\nroute add local default dev lo table 77")
        .unwrap();
    gateway.set_sysctl("net.ipv4.conf.lo.route_localnet", "1").unwrap();
    gateway.set_sysctl("net.ipv4.conf.lo.accept_local", "1").unwrap();
    let before = Snapshot::take(gateway);
    for run in RUNS {
        let mut tproxy = world.tproxy(run);
        end_by(&mut tproxy, Signal::TERM);
        before.assert_same(gateway, &format!("{run}\n{}", *tproxy));
        world.tproxy(run).kill9();
        assert_cleanup(gateway);
        before.assert_same(gateway, &run);
    }
}

#[test]
fn a_failed_start_leaves_the_host_as_it_was() {
    let world = World::new();
    let gateway = &world.net.gateway;
    // Somebody else's route sits in our table: noticed only once other things are in place, or before.
    gateway.ip("route add 192.0.2.0/24 dev wan table 4711").unwrap();
    let before = Snapshot::take(gateway);
    for run in RUNS {
        let output = tproxy_output(gateway, &format!("run {run} --table 4711"));
        assert!(!output.status.success(), "{}", output.said);
        assert!(output.said.contains("4711"), "{}", output.said);
        before.assert_same(gateway, &output.said);
    }
}

#[track_caller]
pub(crate) fn assert_cleanup(namespace: &Namespace) {
    let output = tproxy_output(namespace, "cleanup");
    assert!(output.status.success(), "cleanup: {}", output.said);
}
