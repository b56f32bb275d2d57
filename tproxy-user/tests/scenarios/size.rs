//! What an instance at rest takes of the machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::support::*;

/// A cgroup that limits memory; it is removed with its guard.
struct Limited {
    directory: PathBuf,
    used: &'static str,
}

impl Limited {
    const HIERARCHIES: [(&str, &str, &str); 2] = [
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ];

    fn new(bytes: u64) -> Self {
        let (root, limit, used) = Self::HIERARCHIES
            .into_iter()
            .find(|(root, ..)| Path::new(root).join("cgroup.procs").exists())
            .expect("a hierarchy of cgroups is mounted");
        // Its children have no controller that it does not hand down; there is no such file in a hierarchy of one.
        let controllers = Path::new(root).join("cgroup.subtree_control");
        if controllers.exists() {
            fs::write(&controllers, "+memory").unwrap();
        }
        let directory = Path::new(root).join(format!("tproxy-{}", tproxy_netns::random_suffix()));
        fs::create_dir(&directory).unwrap();
        let limited = Self { directory, used };
        fs::write(limited.directory.join(limit), bytes.to_string()).unwrap();
        limited
    }

    fn used(&self) -> u64 {
        let text = fs::read_to_string(self.directory.join(self.used)).unwrap();
        text.trim().parse().unwrap()
    }

    /// `binary run ARGS` on the gateway, from its first instruction on in the cgroup.
    fn tproxy(&self, world: &World, args: &str) -> Tproxy {
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec {} run {args}",
            self.directory.display(),
            binary().display()
        );
        let mut command = world.net.gateway.command("sh");
        command.args(["-c", &script]);
        let tproxy: Tproxy = Proc::start(command).unwrap().into();
        tproxy.wait_line(&["ready"], PATIENCE).unwrap();
        tproxy
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.directory) {
            eprintln!("{}: {error}", self.directory.display());
        }
    }
}

/// How many programs a process has loaded.
fn programs(process: u32) -> usize {
    let files = fs::read_dir(format!("/proc/{process}/fdinfo")).unwrap();
    let texts = files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap_or_default());
    // A link tells its program too.
    texts.filter(|text| text.contains("prog_tag:") && !text.contains("link_type:")).count()
}

#[test]
fn an_instance_at_rest_is_small_and_starts_where_there_is_little_memory() {
    const MIB: u64 = 1 << 20;
    const MOST: u64 = 24_000_000;
    let world = World::new();
    let args = format!("{FORWARDED} --port 80 --action respond=taken --workers 2");
    // Pages of the file are charged to who reads them first, and kept.
    drop(world.tproxy(&args));
    let limited = Limited::new(48 * MIB);
    let tproxy = limited.tproxy(&world, &args);
    // With the maps, which the kernel charges to who makes them.
    let used = limited.used();
    assert!(used <= MOST, "{} KiB\n{}", used / 1024, *tproxy);
    for family in Family::ALL {
        world.curl(family.public(), 80).assert_body("taken", &*tproxy);
    }
    drop(tproxy);
}

#[test]
fn only_programs_that_are_attached_are_loaded() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let inbound = world.tproxy("--scope inbound --proto tcp --port 80 --action respond=taken");
    assert_eq!(programs(inbound.pid()), 2, "sk_lookup and what listeners run\n{}", *inbound);
    // Of another hook, nothing was loaded that could be asked.
    let explained =
        tproxy_output(gateway, "explain tcp 10.62.0.1:5 8.8.8.8:80 --scope outbound --interface wan");
    assert!(explained.status.success() && explained.said.contains("no_hook"), "{}", explained.said);
    drop(inbound);
    let forwarded = world.tproxy(&format!("{FORWARDED} --proto tcp --port 80 --action respond=taken"));
    assert_eq!(programs(forwarded.pid()), 4, "and those of both sides\n{}", *forwarded);
}
