//! As a service of systemd: what it is told, and the unit file.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::{
    process::Signal,
    time::{ClockId, clock_gettime},
};

use crate::{
    reload::{File, answering, told},
    support::*,
};

/// What listens at `$NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    /// In the directory of a file, with which it goes.
    fn new(file: &File) -> Self {
        let path = file.directory().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path }
    }

    /// Starts `tproxy run` as systemd does.
    fn start(&self, world: &World, prefix: &str, within: Duration, args: &str) -> Tproxy {
        let environment =
            format!("NOTIFY_SOCKET={} WATCHDOG_USEC={}", self.path.display(), within.as_micros());
        let line = format!("env {environment} {prefix} {} run {args}", binary().display());
        world.net.gateway.start(&line).unwrap_or_else(|error| panic!("{error}")).into()
    }

    fn next(&self, context: &Tproxy) -> Vec<String> {
        let mut buffer = [0; 4096];
        let length =
            self.socket.recv(&mut buffer).unwrap_or_else(|error| panic!("no word: {error}\n{}", **context));
        String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned).collect()
    }

    /// The next that is no sign of life.
    fn next_state(&self, context: &Tproxy) -> Vec<String> {
        loop {
            let state = self.next(context);
            if state != ["WATCHDOG=1"] {
                return state;
            }
        }
    }
}

fn monotonic_usec() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

#[test]
fn the_service_manager_is_told_of_all_states_in_order_and_that_we_live() {
    const WITHIN: Duration = Duration::from_millis(400);
    let world = World::new();
    let answering = |text: &str| {
        format!("{}[[rules]]\nscope = \"inbound\"\naction = \"direct\"\n", answering("a", 80, text))
    };
    let file = File::new(&answering("one"));
    let manager = Manager::new(&file);
    let mut tproxy = manager.start(&world, "", WITHIN, &file.flags());
    assert_eq!(manager.next(&tproxy), ["READY=1", "STATUS=steering is in place"]);
    let assert_told =
        |text: &str| assert_eq!(told(&world.net.client, Family::V4.public(), 80).unwrap(), text);
    assert_told("one");

    assert_eq!(manager.next(&tproxy), ["WATCHDOG=1"]);
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(manager.next(&tproxy), ["WATCHDOG=1"]);
    }
    assert!(began.elapsed() > WITHIN, "more often than twice: {:?}", began.elapsed());

    for (text, says) in [
        (answering("two"), "STATUS=reloaded: rules changed=1 (a)"),
        ("rules = 7\n".to_owned(), "STATUS=not reloaded: "),
    ] {
        file.replace(&text);
        let asked = monotonic_usec();
        tproxy.signal(Signal::HUP);
        let reloading = manager.next_state(&tproxy);
        assert_eq!(reloading[0], "RELOADING=1");
        let when: i64 = reloading[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!((asked..=monotonic_usec()).contains(&when), "{asked} {when}");
        let ready = manager.next_state(&tproxy);
        assert!(ready[0] == "READY=1" && ready[1].starts_with(says), "{ready:?}");
        assert_told("two");
    }

    let application = listen(&world.net.gateway, (Family::V4.lan(), 7));
    let live = connect(&world.net.client, (Family::V4.lan(), 7)).unwrap();
    let upstream = accept(&application);
    tproxy.wait_line(&["accepted", "direct"], PATIENCE).unwrap();
    tproxy.signal(Signal::TERM);
    assert_eq!(
        manager.next_state(&tproxy),
        ["STOPPING=1", "EXTEND_TIMEOUT_USEC=40000000", "STATUS=draining: 1 live"]
    );
    for _ in 0..2 {
        assert_eq!(manager.next(&tproxy), ["WATCHDOG=1"]);
    }
    drop((live, upstream));
    assert!(tproxy.wait(PATIENCE).unwrap().success(), "{}", *tproxy);
}

#[test]
fn a_socket_that_nobody_listens_at_keeps_nothing_from_its_work() {
    let world = World::new();
    let file = File::new(&answering("a", 80, "one"));
    let Manager { path, socket } = Manager::new(&file);
    drop(socket);
    let line = format!("env NOTIFY_SOCKET={} {} run {}", path.display(), binary().display(), file.flags());
    let tproxy: Tproxy = world.net.gateway.start(&line).unwrap().into();
    tproxy.wait_line(&["cannot tell the service manager", "NOTIFY_SOCKET"], PATIENCE).unwrap();
    assert_eq!(told(&world.net.client, Family::V4.public(), 80).unwrap(), "one", "{}", *tproxy);
}

/// The unit that is shipped.
fn unit() -> (PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/tproxy.service");
    let text = fs::read_to_string(&path).unwrap();
    (path, text)
}

fn value_of<'a>(unit: &'a str, key: &str) -> &'a str {
    let found = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("the unit has no {key}"))
}

/// A run with just these capabilities, as root has them in the unit.
fn start_with(world: &World, manager: &Manager, capabilities: &[&str], args: &str) -> Tproxy {
    let set: String = capabilities.iter().map(|name| format!(",+{}", name.to_lowercase())).collect();
    let set = set.replace("cap_", "");
    manager.start(world, &format!("setpriv --bounding-set=-all{set} --inh-caps=-all"), Duration::ZERO, args)
}

#[test]
fn the_capabilities_of_the_unit_do_and_none_of_them_is_too_much() {
    let (_, unit) = unit();
    let capabilities: Vec<_> = value_of(&unit, "CapabilityBoundingSet").split(' ').collect();
    let world = World::new();
    let file = File::new(
        "[[rules]]\nscope = \"forwarded\"\ninterfaces = [\"lan\"]\naction = \"direct\"\nsource = \"client\"\n\
         [[rules]]\nscope = \"outbound\"\nports = [81]\naction = \"respond=hello\"\n",
    );
    let manager = Manager::new(&file);
    {
        let mut tproxy = start_with(&world, &manager, &capabilities, &file.flags());
        assert_eq!(manager.next(&tproxy)[0], "READY=1");
        for family in Family::ALL {
            let server = (family.server(), 80).into();
            world.curl(family.server(), 80).assert_nginx(server, family.client(), &*tproxy);
            curl(&world.net.gateway, "", family.public(), 81).assert_body("hello", &*tproxy);
        }
        let asked = datagrams(&world.net.server, (Family::V4.server(), 53));
        let client = datagrams(&world.net.client, (Family::V4.client(), 0));
        client.send_to(b"?", (Family::V4.server(), 53)).unwrap();
        let mut buffer = [0; 16];
        let (length, from) =
            asked.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{error}\n{}", *tproxy));
        asked.send_to(&buffer[..length], from).unwrap();
        let (_, from) = client.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{error}\n{}", *tproxy));
        assert_eq!(from, (Family::V4.server(), 53).into());
        tproxy.signal(Signal::TERM);
        assert!(tproxy.wait(PATIENCE).unwrap().success(), "{}", *tproxy);
        let wrong = |line: &&String| line.contains("WARN") || line.contains("ERROR");
        assert_eq!(tproxy.lines().iter().find(wrong), None, "{}", *tproxy);
    }
    // Without CAP_CHOWN what is relayed for a user leaves as root's, whom the routing of some hosts sends another way.
    for without in capabilities.iter().filter(|name| **name != "CAP_CHOWN") {
        let rest: Vec<_> = capabilities.iter().filter(|name| *name != without).copied().collect();
        let mut tproxy = start_with(&world, &manager, &rest, &file.flags());
        let status = tproxy.wait(PATIENCE).unwrap_or_else(|error| panic!("{without}: {error}"));
        assert_eq!(status.code(), Some(1), "{without}: {}", *tproxy);
        assert!(tproxy.lines().iter().any(|line| line.contains(without)), "{without}: {}", *tproxy);
    }
}

#[test]
fn systemd_understands_the_unit() {
    let (_, text) = unit();
    tproxy_netns::require_tool("systemd-analyze").unwrap();
    assert_eq!(value_of(&text, "Type"), "notify-reload");
    let file = File::new("");
    let copy = file.directory().join("tproxy.service");
    let program = value_of(&text, "ExecStart").split(' ').next().unwrap();
    fs::write(&copy, text.replace(program, &binary().display().to_string())).unwrap();
    let output = Command::new("systemd-analyze").arg("verify").arg(&copy).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // Before systemd 253 there is no such type. Of other units on this machine it may say more.
    let complaint = |line: &&str| line.contains("tproxy.service") && !line.contains("notify-reload");
    assert_eq!(said.lines().find(complaint), None, "{said}");
    assert!(output.status.success(), "{said}");
}
