//! `--on-exit reject`: what a rule selects is refused when the process is gone, until somebody takes over.

use std::{
    fs, io,
    io::ErrorKind,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use rustix::process::Signal;

use crate::{
    clean::{Snapshot, assert_cleanup},
    support::*,
};

/// How a process ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Killed,
    Stopped,
}

const ENDS: [End; 2] = [End::Killed, End::Stopped];

impl End {
    #[track_caller]
    fn of(self, tproxy: &mut Tproxy) {
        match self {
            Self::Killed => tproxy.kill9(),
            Self::Stopped => {
                tproxy.signal(Signal::TERM);
                let status = tproxy.wait(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
                assert!(status.success(), "{status}\n{}", **tproxy);
            }
        }
    }
}

/// Where an instance in this namespace has its pins.
fn pins(namespace: &Namespace) -> PathBuf {
    let inode = fs::metadata(namespace.path()).unwrap().ino();
    format!("/sys/fs/bpf/tproxy/{inode}").into()
}

/// Asserts that a datagram is refused, by ICMP.
#[track_caller]
fn assert_datagram_refused(namespace: &Namespace, to: SocketAddr, context: &dyn std::fmt::Display) {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = datagrams(namespace, any.parse::<SocketAddr>().unwrap());
    let answer = namespace
        .enter(|| -> io::Result<usize> {
            socket.connect(to)?;
            socket.send(b"hello")?;
            socket.recv(&mut [0; 100])
        })
        .map_err(|error| error.kind());
    assert_eq!(answer, Err(ErrorKind::ConnectionRefused), "{to}\n{context}");
}

/// A scope's rule for port 8080, and where packets that it selects come from and go to.
struct Case {
    name: &'static str,
    rule: &'static str,
    client: fn(&World) -> &Namespace,
    to: fn(Family) -> SocketAddr,
}

const CASES: [Case; 3] = [
    Case {
        name: "forwarded",
        rule: "--scope forwarded --interface lan --port 8080",
        client: |world| &world.net.client,
        to: |family| (family.public(), 8080).into(),
    },
    Case {
        name: "outbound",
        rule: "--scope outbound --port 8080",
        client: |world| &world.net.gateway,
        to: |family| (family.public(), 8080).into(),
    },
    Case {
        name: "inbound",
        rule: "--scope inbound --port 8080",
        client: |world| &world.net.client,
        to: |family| (family.lan(), 8080).into(),
    },
];

#[test]
fn what_a_rule_selects_is_refused_at_once_when_the_process_is_gone() {
    for (case, engine) in CASES.iter().flat_map(|case| ENGINES.map(|engine| (case, engine))) {
        let world = World::new();
        let _application = Nginx::start(&world.net.gateway).unwrap();
        let before = Snapshot::take(&world.net.gateway);
        for end in ENDS {
            let mut tproxy = world
                .tproxy(&format!("{} --action respond=hello --on-exit reject --steer {engine}", case.rule));
            let context = format!("{} {engine} {end:?}", case.name);
            let client = (case.client)(&world);
            let get = |to: SocketAddr| curl(client, "", to.ip(), to.port());
            for family in Family::ALL {
                get((case.to)(family)).assert_body("hello", &context);
            }
            end.of(&mut tproxy);
            for family in Family::ALL {
                let to = (case.to)(family);
                for _again in 0..2 {
                    assert_refused_at_once(client, to, &context);
                    assert_datagram_refused(client, to, &context);
                }
                // Nothing else is.
                let other = SocketAddr::new(to.ip(), 80);
                assert!(get(other).body.starts_with("server "), "{context}");
            }
            assert_cleanup(&world.net.gateway);
            before.assert_same(&world.net.gateway, &context);
            assert!(!pins(&world.net.gateway).exists(), "{context}");
            for family in Family::ALL {
                assert!(get((case.to)(family)).body.starts_with("server "), "{context}");
            }
        }
    }
}

#[test]
fn a_flow_of_datagrams_under_way_is_refused_too() {
    let world = World::new();
    for engine in ENGINES {
        let mut tproxy =
            world.tproxy(&format!("{FORWARDED} --action respond=hello --on-exit reject --steer {engine}"));
        let client = &world.net.client;
        let to = SocketAddr::from((Family::V4.public(), 9));
        let socket = datagrams(client, (Family::V4.client(), 0));
        socket.connect(to).unwrap();
        let ask = || {
            socket.send(b"who is there?")?;
            socket.recv(&mut [0; 100])
        };
        assert_eq!(ask().unwrap(), "hello".len(), "{engine}\n{}", *tproxy);
        tproxy.kill9();
        assert_eq!(ask().map_err(|error| error.kind()), Err(ErrorKind::ConnectionRefused), "{engine}");
        assert_cleanup(&world.net.gateway);
    }
}

#[test]
fn while_it_drains_the_live_go_on_and_the_new_are_refused() {
    for engine in ENGINES {
        let world = World::new();
        serve(&world.net.server, (Family::V4.server(), 7), echo);
        let mut tproxy = world.tproxy(&format!(
            "{FORWARDED} --action direct --on-exit reject --steer {engine} --drain-timeout 60s"
        ));
        let live = connect(&world.net.client, (Family::V4.server(), 7)).unwrap();
        assert_echo(&live, "before", &*tproxy);
        tproxy.signal(Signal::TERM);
        tproxy.wait_line(&["draining"], PATIENCE).unwrap();
        for family in Family::ALL {
            assert_refused_at_once(&world.net.client, (family.server(), 80), &*tproxy);
            assert_datagram_refused(&world.net.client, (family.server(), 80).into(), &*tproxy);
        }
        assert_echo(&live, &"while draining".repeat(10_000), &*tproxy);
        drop(live);
        assert!(tproxy.wait(PATIENCE).unwrap().success(), "{}", *tproxy);
        assert_cleanup(&world.net.gateway);
    }
}

/// What clients saw of a change of processes, each answer once.
fn seen_by_clients(world: &World, change: impl FnOnce()) -> Vec<String> {
    let done = AtomicBool::new(false);
    let ask = || {
        let mut seen = Vec::new();
        while !done.load(Ordering::Relaxed) {
            let got = world.curl(Family::V4.public(), 80);
            let said = got.body.split_whitespace().next().unwrap_or("refused").to_owned();
            if seen.last() != Some(&said) {
                seen.push(said);
            }
        }
        seen
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        let end = SetAtEnd(&done);
        change();
        drop(end);
        let mut seen: Vec<_> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        seen.sort();
        seen.dedup();
        seen
    })
}

#[test]
fn another_process_takes_over_and_nothing_passes_in_between() {
    for (engine, end) in ENGINES.iter().flat_map(|engine| ENDS.map(|end| (engine, end))) {
        let world = World::new();
        let before = Snapshot::take(&world.net.gateway);
        let start = |text: &str, on_exit: &str| {
            world.tproxy(&format!(
                "{FORWARDED} --port 80 --action respond={text} --on-exit {on_exit} --steer {engine}"
            ))
        };
        let mut running = start("first", "reject");
        let pinned = || fs::read_dir(pins(&world.net.gateway).join("20000000")).unwrap().count();
        let count = pinned();
        for (text, on_exit) in [("second", "reject"), ("third", "reject"), ("last", "pass")] {
            let seen = seen_by_clients(&world, || {
                end.of(&mut running);
                let refused =
                    connect(&world.net.client, (Family::V6.public(), 80)).map_err(|error| error.kind());
                assert_eq!(refused.err(), Some(ErrorKind::ConnectionRefused), "{engine} {end:?} {text}");
                running = start(text, on_exit);
                world.curl(Family::V4.public(), 80).assert_body(text, &*running);
            });
            // "server" is what nginx begins with.
            assert!(!seen.iter().any(|said| said == "server"), "{engine} {end:?} {text}: {seen:?}");
            for family in Family::ALL {
                world.curl(family.public(), 80).assert_body(text, &*running);
            }
            if on_exit == "reject" {
                assert_eq!(pinned(), count, "{engine} {end:?} {text}");
            }
        }
        assert!(!pins(&world.net.gateway).exists(), "{engine} {end:?}");
        end.of(&mut running);
        let family = Family::V4;
        world.curl(family.public(), 80).assert_nginx((family.public(), 80).into(), family.client(), &engine);
        assert_cleanup(&world.net.gateway);
        before.assert_same(&world.net.gateway, &engine);
    }
}

#[test]
fn others_leave_it_alone_and_a_failed_start_does_too() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let before = Snapshot::take(gateway);
    let run = format!("{FORWARDED} --port 80 --action respond=hello --on-exit reject");
    let mut tproxy = world.tproxy(&run);
    tproxy.kill9();
    let pid = tproxy.pid().to_string();
    let assert_refused = |context: &dyn std::fmt::Display| {
        assert_refused_at_once(&world.net.client, (Family::V4.public(), 80), &context);
    };
    for flags in ["--table 4711", "--priority 4711", "--mark 0x100000/0x300000"] {
        let output = tproxy_output(gateway, &format!("run {run} {flags}"));
        assert!(!output.status.success(), "{flags}: {}", output.said);
        assert_eq!(output.said.trim().lines().count(), 1, "{flags}: {}", output.said);
        for word in [&pid, "take over", "tproxy cleanup"] {
            assert!(output.said.contains(word), "{flags}: {}", output.said);
        }
        assert_refused(&output.said);
    }
    // Too few descriptors for the listeners, which come after the journal.
    let binary = binary().display();
    let mut failed =
        gateway.start(&format!("prlimit --nofile=24:24 {binary} run {run} --workers 32")).unwrap();
    assert!(!failed.wait(PATIENCE).unwrap().success(), "{failed}");
    assert_refused(&failed);
    let other = "--mark 0x100000/0x300000 --table 4711";
    let mut second = world.tproxy(&format!("{FORWARDED} --port 81 --action respond=other {other}"));
    world.curl(Family::V4.public(), 81).assert_body("other", &*second);
    assert_refused(&*second);
    End::Stopped.of(&mut second);
    assert_refused(&*second);
    assert_cleanup(gateway);
    before.assert_same(gateway, &*second);
}

#[test]
fn without_a_bpf_file_system_the_error_says_how_to_get_one() {
    let world = World::new();
    let before = Snapshot::take(&world.net.gateway);
    let binary = binary().display();
    // A mount namespace of its own, with something else in the place.
    let script = format!(
        "mount -t tmpfs none /sys/fs/bpf; exec {binary} run {FORWARDED} --action pass --on-exit reject"
    );
    let mut command = world.net.gateway.command("unshare");
    command.args(["--mount", "--", "sh", "-c", &script]);
    let mut proc = Proc::start(command).unwrap();
    assert!(!proc.wait(PATIENCE).unwrap().success(), "{proc}");
    assert!(proc.lines().join("\n").contains("mount -t bpf -o mode=0700 bpf /sys/fs/bpf"), "{proc}");
    before.assert_same(&world.net.gateway, &proc);
}

#[test]
fn pins_are_only_where_nobody_else_could_replace_them() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let before = Snapshot::take(gateway);
    let binary = binary().display();
    for (prepare, said) in [
        (
            "mkdir /sys/fs/bpf/tproxy && chown 65534 /sys/fs/bpf/tproxy",
            "/sys/fs/bpf/tproxy belongs to user 65534",
        ),
        ("mkdir -m 777 /sys/fs/bpf/tproxy", "others can write to /sys/fs/bpf/tproxy (mode 777)"),
        ("chmod 777 /sys/fs/bpf", "others can write to /sys/fs/bpf (mode 777)"),
        ("chown 65534 /sys/fs/bpf", "/sys/fs/bpf belongs to user 65534"),
    ] {
        let run = format!("exec {binary} run {FORWARDED} --action pass --on-exit reject");
        let script = format!("mount -t bpf bpf /sys/fs/bpf && {prepare} && {run}");
        let mut command = gateway.command("unshare");
        command.args(["--mount", "--", "sh", "-c", &script]);
        let mut proc = Proc::start(command).unwrap();
        assert!(!proc.wait(PATIENCE).unwrap().success(), "{proc}");
        assert!(proc.lines().join("\n").contains(said), "{proc}");
        before.assert_same(gateway, &proc);
    }
}
