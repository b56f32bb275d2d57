//! A `/run` that cannot be written to: said in one line with the remedy, and nothing is left behind.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use rustix::process::Signal;

use crate::{
    clean::Snapshot,
    reload::{File, answering, told},
    support::*,
};

/// `sh -c SCRIPT` on the gateway, with a `/run` of its own that these options of `mount` make.
fn with_run(world: &World, options: &str, script: &str) -> std::process::Command {
    let mut command = world.net.gateway.command("unshare");
    command.args(["--mount", "sh", "-c", &format!("mount -t tmpfs -o {options} none /run && {script}")]);
    command
}

#[test]
fn a_start_is_refused_in_one_line_and_nothing_is_left() {
    let world = World::new();
    let before = Snapshot::take(&world.net.gateway);
    let full = "head -c 1M /dev/zero > /run/filler 2> /dev/null;";
    for (options, prepare, says) in [
        ("ro", "", ["/run/tproxy", "Read-only file system", "make it writable"]),
        ("nr_inodes=1", "", ["/run/tproxy", "No space left", "make room there"]),
        ("size=64k", full, [".json", "No space left", "make room there"]),
    ] {
        let run = format!("{} run --scope forwarded --interface lan --action pass", binary().display());
        let script = format!("{prepare} {run}; code=$?; find /run -mindepth 1 ! -name filler; exit $code");
        let output = with_run(&world, options, &script).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{options}: {said}");
        assert!(says.iter().all(|word| said.contains(word)), "{options}: {said}");
        assert_eq!(said.lines().count(), 1, "{options}: {said}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{options}: this is left");
        before.assert_same(&world.net.gateway, &said);
    }
}

#[test]
fn a_disk_that_is_full_later_keeps_reloads_back_and_nothing_else() {
    let world = World::new();
    let before = Snapshot::take(&world.net.gateway);
    let file = File::new(&answering("one", 80, "one"));
    let run = format!("exec {} run {}", binary().display(), file.flags());
    let mut tproxy: Tproxy = Proc::start(with_run(&world, "size=64k", &run)).unwrap().into();
    tproxy.wait_line(&["ready"], PATIENCE).unwrap();
    // Its own mount namespace, by a descriptor that lasts longer than it does.
    let directory = fs::File::open(format!("/proc/{}/root/run", tproxy.pid())).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let filler = path.join("filler");
    fill(&filler);
    let assert_told =
        |text: &str| assert_eq!(told(&world.net.client, Family::V4.public(), 80).unwrap(), text);
    assert_told("one");
    // It has to be written down that another interface is concerned.
    file.replace(&(answering("one", 80, "two") + &answering("wan", 80, "wan").replace("\"lan\"", "\"wan\"")));
    let reload = |words: &[&str]| {
        let position = tproxy.position();
        tproxy.signal(Signal::HUP);
        tproxy.wait_line_from(position, words, PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    };
    reload(&["not reloaded: cannot write", ".json", "No space left", "make room there"]);
    assert_told("one");
    fs::remove_file(&filler).unwrap();
    reload(&["reloaded", "rules added=1 (wan)"]);
    assert_told("two");
    fill(&filler);
    tproxy.signal(Signal::TERM);
    assert!(tproxy.wait(PATIENCE).unwrap().success(), "{}", *tproxy);
    fs::remove_file(&filler).unwrap();
    let left: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}\n{}", *tproxy);
    before.assert_same(&world.net.gateway, &*tproxy);
}

/// Takes all the room there is.
fn fill(file: &Path) {
    let mut file = fs::File::create(file).unwrap();
    let error = (0..1000).find_map(|_| file.write_all(&[0; 4096]).err()).expect("it has a limit");
    assert_eq!(error.kind(), ErrorKind::StorageFull);
}
