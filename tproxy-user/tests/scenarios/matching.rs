//! Which flows a rule selects.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Instant,
};

use crate::support::*;

/// A rule's flags, a destination, and whether the rule takes it.
type Row = (&'static str, &'static str, bool);

const ROWS: [Row; 24] = [
    ("--to 10.2.0.2", "10.2.0.2:80", true),
    ("--to 10.2.0.2", "8.8.8.8:80", false),
    ("--to 10.2.0.0/16 --to 8.0.0.0/6", "8.8.8.8:80", true),
    ("--to 10.2.0.0/16 --to 8.8.8.0/29", "8.8.8.8:80", false),
    ("--to fd00:2::2", "[fd00:2::2]:80", true),
    ("--to fd00:2::2", "[2001:4860:4860::8888]:80", false),
    ("--to 2001:4860::/32", "[2001:4860:4860::8888]:80", true),
    ("--to 0.0.0.0/0", "[fd00:2::2]:80", false),
    ("--to ::/0", "10.2.0.2:80", false),
    ("--to 0.0.0.0/0 --except 8.8.8.8", "8.8.8.8:80", false),
    ("--to 0.0.0.0/0 --except 8.8.8.8", "10.2.0.2:80", true),
    ("--to 0.0.0.0/0 --except 8.8.0.0/16 --except 10.2.0.0/24", "10.2.0.2:80", false),
    ("--to ::/0 --except 2001:4860::/32", "[2001:4860:4860::8888]:80", false),
    ("--to ::/0 --except 2001:4860::/32", "[fd00:2::2]:80", true),
    ("--from 10.1.0.2 --to 0.0.0.0/0", "10.2.0.2:80", true),
    ("--from 10.1.0.3 --from 10.9.0.0/16 --to 0.0.0.0/0", "10.2.0.2:80", false),
    ("--from fd00:1::/64 --to ::/0", "[fd00:2::2]:80", true),
    ("--from fd00:9::/64 --to ::/0", "[fd00:2::2]:80", false),
    ("--to 0.0.0.0/0 --port 80,443,8000-8999", "10.2.0.2:443", true),
    ("--to 0.0.0.0/0 --port 80,443,8000-8999", "10.2.0.2:8443", true),
    ("--to 0.0.0.0/0 --port 80,443,8000-8999", "10.2.0.2:81", false),
    ("--to ::/0 --port 82-8442", "[fd00:2::2]:81", false),
    ("--to ::/0 --port 82-8442", "[fd00:2::2]:8080", true),
    ("--to ::/0 --port 82-8442", "[fd00:2::2]:8443", false),
];

#[test]
fn a_rule_takes_what_its_flags_say_and_nothing_else() {
    let world = World::new();
    for flags in unique(ROWS.iter().map(|row| row.0)) {
        let tproxy =
            world.tproxy(&format!("--scope forwarded --interface lan {flags} --action respond=taken"));
        for (_, destination, taken) in ROWS.iter().filter(|row| row.0 == flags) {
            let destination: SocketAddr = destination.parse().unwrap();
            let got = world.curl(destination.ip(), destination.port());
            assert_eq!(
                got.body.trim_end() == "taken",
                *taken,
                "{flags}: {destination}: {got:?}\n{}",
                *tproxy
            );
            assert!(*taken || got.body.starts_with("server"), "{flags}: {destination}: {got:?}\n{}", *tproxy);
        }
    }
}

fn unique<'a>(flags: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut flags: Vec<_> = flags.collect();
    flags.dedup();
    flags
}

#[test]
fn uid_selects_the_senders_user() {
    let world = World::new();
    for engine in ENGINES {
        let tproxy = world.tproxy(&format!(
            "--scope outbound --uid 4711 --uid 4713 --action respond=taken --steer {engine}"
        ));
        for family in Family::ALL {
            for (uid, taken) in [(4711, true), (4712, false), (4713, true), (0, false)] {
                let wrapper = format!("setpriv --reuid {uid} --clear-groups --");
                let got = curl(&world.net.gateway, &wrapper, family.server(), 80);
                assert_taken(
                    taken,
                    &got,
                    family.wan(),
                    &format!("{engine} {family:?} uid {uid}\n{}", *tproxy),
                );
            }
        }
    }
}

#[test]
fn cgroup_selects_its_processes_and_those_below() {
    let world = World::new();
    let cgroup = Cgroup::new();
    let below = cgroup.0.join("below");
    fs::create_dir(&below).unwrap();
    for engine in ENGINES {
        let path = cgroup.0.display();
        let tproxy = world
            .tproxy(&format!("--scope outbound --cgroup {path} --action respond=taken --steer {engine}"));
        for family in Family::ALL {
            for directory in [&cgroup.0, &below] {
                let got = curl_in_cgroup(&world.net.gateway, directory, family.server());
                assert_eq!(got.trim_end(), "taken", "{engine} {}\n{}", directory.display(), *tproxy);
            }
            let got = curl(&world.net.gateway, "", family.server(), 80);
            assert_taken(false, &got, family.wan(), &format!("{engine}: outside\n{}", *tproxy));
        }
    }
}

/// As that of a service that is restarted.
#[test]
fn a_cgroup_that_is_made_anew_is_selected_again() {
    let world = World::new();
    let cgroup = Cgroup::new();
    let path = cgroup.0.display();
    let tproxy = world.tproxy(&format!("--scope outbound --cgroup {path} --action respond=taken"));
    for family in Family::ALL {
        let asked = || curl_in_cgroup(&world.net.gateway, &cgroup.0, family.server());
        assert_eq!(asked().trim_end(), "taken", "{}", *tproxy);
        let position = tproxy.position();
        fs::remove_dir(&cgroup.0).unwrap();
        fs::create_dir(&cgroup.0).unwrap();
        tproxy.wait_line_from(position, &["cgroups that rules name came or went"], PATIENCE).unwrap();
        // That it went may be noticed before it comes.
        let begun = Instant::now();
        while asked().trim_end() != "taken" {
            assert!(begun.elapsed() < PATIENCE, "{}", *tproxy);
        }
    }
}

fn assert_taken(taken: bool, got: &Curl, source: IpAddr, context: &dyn std::fmt::Display) {
    if taken {
        got.assert_body("taken", context);
    } else {
        assert!(got.body.contains(&format!("saw {source}:")), "{got:?}\n{context}");
    }
}

pub(crate) fn curl_in_cgroup(namespace: &Namespace, directory: &std::path::Path, address: IpAddr) -> String {
    let url = format!("http://{}/", SocketAddr::new(address, 80));
    let script =
        format!("echo $$ > {}/cgroup.procs && exec curl -sS --max-time 10 {url} 2>&1", directory.display());
    let output = namespace.command("sh").args(["-c", &script]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A cgroup v2 directory of our own, removed with the one below it.
pub(crate) struct Cgroup(pub(crate) PathBuf);

impl Cgroup {
    pub(crate) fn new() -> Self {
        let path = Self::root().join(format!("tp-{}", tproxy_netns::random_suffix()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Where the hierarchy is mounted.
    pub(crate) fn root() -> PathBuf {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let root = mount.filter(|fields| fields[2] == "cgroup2").map(|fields| fields[1].to_owned()).next();
        PathBuf::from(root.expect("the cgroup v2 hierarchy is not mounted"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for directory in [self.0.join("below"), self.0.clone()].into_iter().filter(|path| path.exists()) {
            if let Err(error) = fs::remove_dir(&directory) {
                eprintln!("{} is left behind: {error}", directory.display());
            }
        }
    }
}
