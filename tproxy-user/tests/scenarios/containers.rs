//! In a container: what cannot be written there, what it has of its own, and what is gone when it is started anew.

use std::fs;

use rustix::process::Signal;

use crate::{
    clean::Snapshot,
    matching::{Cgroup, curl_in_cgroup},
    support::*,
};

/// `tproxy ARGS` in a namespace, and in a mount namespace of its own that `prepare` has made other.
fn contained(namespace: &Namespace, prepare: &str, args: &str) -> Tproxy {
    let mut command = namespace.command("unshare");
    let script = format!("{prepare} && exec {} {args}", binary().display());
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    Proc::start(command).unwrap().into()
}

#[track_caller]
fn assert_ready(tproxy: &Tproxy) {
    tproxy.wait_line(&["ready"], PATIENCE).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn what_need_not_be_written_is_not() {
    let world = World::new();
    let (client, gateway) = (&world.net.client, &world.net.gateway);
    let read_only =
        |place: String| format!("mount --bind {place} {place} && mount -o remount,ro,bind {place}");
    let prepare = ["/proc/sys".to_owned(), Cgroup::root().display().to_string()].map(read_only).join(" && ");
    let taken = "--to 0.0.0.0/0 --to ::/0 --port 80 --action respond=taken";
    let assert_taken = |from: &Namespace, tproxy: &Tproxy| {
        for family in Family::ALL {
            curl(from, "", family.server(), 80).assert_body("taken", &**tproxy);
        }
    };
    let forwarded = contained(gateway, &prepare, &format!("run --scope forwarded --interface lan {taken}"));
    assert_ready(&forwarded);
    assert_taken(client, &forwarded);
    drop(forwarded);
    let needs_one =
        [format!("--scope outbound {taken}"), "--scope inbound --action direct --source client".into()];
    let before = Snapshot::take(gateway);
    for run in &needs_one {
        let mut refused = contained(gateway, &prepare, &format!("run {run}"));
        assert_eq!(refused.wait(PATIENCE).unwrap().code(), Some(1), "{}", *refused);
        let cure = "docker run --sysctl net.ipv4.conf.lo.accept_local=1";
        let lines = refused.lines();
        assert!(lines.len() == 1 && lines[0].contains(cure), "{}", *refused);
        before.assert_same(gateway, &*refused);
    }
    gateway.set_sysctl("net.ipv4.conf.lo.accept_local", "1").unwrap();
    for run in &needs_one {
        let mut tproxy = contained(gateway, &prepare, &format!("run {run}"));
        assert_ready(&tproxy);
        if run.contains("outbound") {
            assert_taken(gateway, &tproxy);
        }
        tproxy.signal(Signal::TERM);
        assert!(tproxy.wait(PATIENCE).unwrap().success(), "{}", *tproxy);
        assert_eq!(gateway.sysctl("net.ipv4.conf.lo.accept_local").unwrap(), "1", "it was so before");
    }
}

#[test]
fn cgroups_are_named_as_the_container_sees_them() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let (root, container) = (Cgroup::root(), Cgroup::new());
    let below = container.0.join("below");
    fs::create_dir(&below).unwrap();
    // The namespace begins where the process is (cgroup_namespaces(7)), and the mount shows what is below that.
    let prepare = format!(
        "echo $$ > {container}/cgroup.procs && exec unshare --cgroup --mount --propagation private sh -c 'umount -l {root} && \
         mount -t cgroup2 none {root} && exec \"$@\"' sh",
        container = container.0.display(),
        root = root.display(),
    );
    for name in ["/below", "/bel*"] {
        let mut command = gateway.command("sh");
        let run = format!("run --scope outbound --cgroup {name} --action respond=taken");
        command.args(["-c", &format!("{prepare} {} {run}", binary().display())]);
        let tproxy: Tproxy = Proc::start(command).unwrap().into();
        assert_ready(&tproxy);
        for family in Family::ALL {
            let asked = |from| curl_in_cgroup(gateway, from, family.server());
            assert_eq!(asked(&below).trim_end(), "taken", "{name}\n{}", *tproxy);
            assert!(asked(&container.0).contains("server"), "{name}: beside it\n{}", *tproxy);
        }
    }
}

#[test]
fn one_that_is_killed_and_has_lost_its_files_starts_again() {
    let world = World::new();
    let gateway = &world.net.gateway;
    // What a sysctl was before is lost with the journal, and no trace of who has set it is left.
    gateway.set_sysctl("net.ipv4.conf.lo.accept_local", "1").unwrap();
    let before = Snapshot::take(gateway);
    let fresh = "mount -t tmpfs none /run";
    for (scope, from) in [("outbound", gateway), ("forwarded --interface lan", &world.net.client)] {
        let run = format!("run --scope {scope} --to 0.0.0.0/0 --to ::/0 --port 80 --action respond=taken");
        for _ in 0..2 {
            let mut tproxy = contained(gateway, fresh, &run);
            assert_ready(&tproxy);
            for family in Family::ALL {
                curl(from, "", family.server(), 80).assert_body("taken", &*tproxy);
            }
            tproxy.kill9();
        }
        let mut cleanup = contained(gateway, fresh, "cleanup");
        assert!(cleanup.wait(PATIENCE).unwrap().success(), "{}", *cleanup);
        let tproxy = contained(gateway, fresh, &run);
        assert_ready(&tproxy);
        drop(tproxy);
        before.assert_same(gateway, &scope);
    }
}
