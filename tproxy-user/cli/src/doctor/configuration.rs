//! A configuration file, and what its rules need of this host.

use std::path::{Path, PathBuf};

use tproxy::{
    config::{self, Config, OnExit},
    datapath::support,
    host::{links, pins},
    plan::{Surroundings, names},
    policy::Cgroup,
};

use super::Finding;

const CHECK: &str = "configuration";
const NO_START: &str = "tproxy does not start with it";

/// The configuration, unless it makes no sense, and what was found.
pub(super) fn examine(file: &Path) -> (Option<Config>, Vec<Finding>) {
    match config::load(file) {
        Err(mistakes) => {
            let cure = || format!("mend that, then: tproxy check {}", file.display());
            let found = mistakes.lines().map(|line| Finding::fail(CHECK, line, NO_START, cure()));
            (None, found.collect())
        }
        Ok(config) => {
            let mut findings = vec![Finding::ok(CHECK, format!("{}: {}", file.display(), config.summary()))];
            findings.extend(interfaces(&config));
            findings.extend(cgroups(&config));
            findings.extend(on_exit(&config));
            (Some(config), findings)
        }
    }
}

/// Those that rules name; each once.
fn interfaces(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "interfaces";
    let links = match links::snapshot() {
        Ok(links) => links,
        Err(error) => return vec![Finding::unknown(CHECK, &error)],
    };
    let surroundings = Surroundings { links, ..Surroundings::default() };
    let addressed = links::addressed().unwrap_or_default();
    let reaches = || config.rules.iter().map(|rule| &rule.selector.reach);
    let misnamed = reaches().filter_map(|reach| surroundings.misnamed(reach, &addressed));
    let misnamed = misnamed.map(|misnamed| {
        Finding::fail(CHECK, misnamed.to_string(), NO_START, "name that one in the rule's interfaces")
    });
    let mut named: Vec<_> = reaches().flat_map(|reach| &reach.interfaces).collect();
    named.sort_unstable();
    named.dedup();
    let look = |name: &String| match surroundings.links.iter().find(|link| names(name, link)) {
        None => Finding::warn(
            CHECK,
            format!("{name} does not exist, and a rule names it"),
            "nothing is taken there until it comes",
            "name one that `ip link` shows, unless it comes later",
        ),
        Some(link) if !link.up => Finding::warn(
            CHECK,
            format!("{name} is down"),
            "nothing arrives or leaves by it",
            format!("ip link set {name} up"),
        ),
        Some(_) => Finding::ok(CHECK, format!("{name} exists, and is up")),
    };
    misnamed.chain(named.into_iter().map(look)).collect()
}

fn cgroups(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "cgroups";
    let mut paths: Vec<_> = config.rules.iter().flat_map(|rule| &rule.selector.cgroups).collect();
    paths.sort_unstable();
    paths.dedup();
    let look = |path: &PathBuf| match Cgroup::find(path) {
        Ok(found) if found.cgroups.is_empty() => Finding::warn(
            CHECK,
            format!("there is no cgroup {}", path.display()),
            "rules that name it select nothing until there is",
            format!("mkdir {}, unless it comes later", path.display()),
        ),
        Ok(found) => Finding::ok(CHECK, format!("{}: {} of them", path.display(), found.cgroups.len())),
        Err(error) => Finding::fail(CHECK, error.to_string(), NO_START, format!("mkdir {}", path.display())),
    };
    paths.into_iter().map(look).collect()
}

/// Programs that outlive the process.
fn on_exit(config: &Config) -> Option<Finding> {
    const CHECK: &str = "on_exit";
    if config.on_exit == OnExit::Pass {
        return None;
    }
    if !support::has_tcx() {
        let cure = "boot Linux 6.6 or newer, or leave on_exit as it is by default";
        return Some(Finding::fail(CHECK, "\"reject\" needs tcx links (Linux 6.6)", NO_START, cure));
    }
    Some(match pins::require_file_system() {
        Ok(()) => Finding::ok(CHECK, "\"reject\": there is a BPF file system for the pins"),
        Err(error) => {
            Finding::fail(CHECK, error.to_string(), NO_START, "mount -t bpf -o mode=0700 bpf /sys/fs/bpf")
        }
    })
}
