//! Other rules for a running instance.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Shutdown},
    os::unix::{fs::symlink, net::UnixStream},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::support::*;

/// A configuration file in a directory of its own, which goes with this.
pub(crate) struct File(PathBuf);

impl File {
    pub(crate) fn new(text: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("tproxy-{}", tproxy_netns::random_suffix()));
        fs::create_dir(&directory).unwrap();
        let file = Self(directory.join("tproxy.toml"));
        file.replace(text);
        file
    }

    pub(crate) fn directory(&self) -> &Path {
        self.0.parent().unwrap()
    }

    /// As editors do: whoever reads it meanwhile gets the old or the new one.
    pub(crate) fn replace(&self, text: &str) {
        let new = self.directory().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, &self.0).unwrap();
    }

    pub(crate) fn flags(&self) -> String {
        format!("--config {}", self.0.display())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(self.directory()) {
            eprintln!("{} is left behind: {error}", self.directory().display());
        }
    }
}

/// Has the file read again, and waits for the line that has `words`.
#[track_caller]
pub(crate) fn hang_up(tproxy: &Tproxy, words: &[&str]) -> String {
    let position = tproxy.position();
    tproxy.signal(Signal::HUP);
    tproxy.wait_line_from(position, words, PATIENCE).unwrap_or_else(|error| panic!("{error}"))
}

/// A rule that answers at a port, and its name.
pub(crate) fn answering(name: &str, port: u16, text: &str) -> String {
    format!(
        "[[rules]]\nname = \"{name}\"\nscope = \"forwarded\"\ninterfaces = [\"lan\"]\nports = [{port}]\n\
         action = \"respond={text}\"\n"
    )
}

/// What a client that says something is told.
pub(crate) fn told(client: &Namespace, to: IpAddr, port: u16) -> io::Result<String> {
    let mut stream = connect(client, (to, port))?;
    stream.write_all(b"hello\n")?;
    stream.shutdown(Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.trim_end().to_owned())
}

/// The answering rule is at another place in each, where the other has one that answers wrongly and that nobody meets.
#[test]
fn five_hundred_reloads_lose_no_connection_and_none_sees_a_mix() {
    const RELOADS: usize = 500;
    const CLIENTS: u8 = 4;
    let world = World::new();
    let (wrong, port) = (|name| answering(name, 9999, "wrong"), 80);
    let versions = [
        answering("one", port, "one") + &wrong("a") + &wrong("b"),
        wrong("c") + &answering("two", port, "two"),
    ];
    let file = File::new(&versions[0]);
    let tproxy = world.tproxy(&file.flags());
    let (done, answers) = (AtomicBool::new(false), [AtomicUsize::new(0), AtomicUsize::new(0)]);
    let began = Instant::now();
    thread::scope(|scope| {
        for client in 1..=CLIENTS {
            let (world, tproxy, done, answers) = (&world, &tproxy, &done, &answers);
            scope.spawn(move || {
                // Other destinations, lest the ports of one be used up.
                let mut destinations = (0..=u8::MAX).cycle();
                let mut next = Instant::now();
                while !done.load(Relaxed) {
                    let to = IpAddr::from(Ipv4Addr::new(8, 8, client, destinations.next().unwrap()));
                    match told(&world.net.client, to, port).as_deref() {
                        Ok("one") => answers[0].fetch_add(1, Relaxed),
                        Ok("two") => answers[1].fetch_add(1, Relaxed),
                        other => {
                            done.store(true, Relaxed);
                            panic!("{other:?}\n{}", **tproxy)
                        }
                    };
                    next += Duration::from_millis(u64::from(CLIENTS));
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            });
        }
        let _end = SetAtEnd(&done);
        for version in versions.iter().cycle().skip(1).take(RELOADS) {
            if done.load(Relaxed) {
                break;
            }
            file.replace(version);
            hang_up(&tproxy, &["reloaded", "rules added"]);
        }
    });
    let [one, two] = answers.map(AtomicUsize::into_inner);
    let rate = (one + two) as f64 / began.elapsed().as_secs_f64();
    eprintln!("{one} + {two} connections, {rate:.0} a second, during {RELOADS} reloads");
    assert!(one > RELOADS && two > RELOADS, "{one} {two}");
}

#[test]
fn what_is_live_keeps_its_rule_and_the_hooks_it_needs() {
    let world = World::new();
    let file = File::new(
        "[[rules]]\nscope = \"forwarded\"\ninterfaces = [\"lan\"]\nports = [7]\naction = \"upstream=10.2.0.2:80\"\n",
    );
    let server = Family::V4.server();
    let listener = world.net.server.enter(|| std::net::TcpListener::bind((server, 7777))).unwrap();
    let text = fs::read_to_string(&file.0).unwrap();
    file.replace(&text.replace("10.2.0.2:80", &format!("{server}:7777")));
    let tproxy = world.tproxy(&file.flags());
    let live = connect(&world.net.client, (Family::V4.public(), 7)).unwrap();
    let upstream = accept(&listener);
    thread::spawn(move || echo(upstream));
    assert_echo(&live, "before", &*tproxy);
    // Nothing of it is about the interface, nor about TCP.
    file.replace("[[rules]]\nscope = \"inbound\"\nprotocol = \"udp\"\nports = [9]\naction = \"drop\"\n");
    hang_up(&tproxy, &["reloaded"]);
    for text in ["after", "and again"] {
        assert_echo(&live, text, &*tproxy);
    }
    drop(live);
    // No new one is taken, and nobody listens there.
    let passed = connect_within(&world.net.client, (Family::V4.public(), 7), Duration::from_secs(1));
    assert!(passed.is_err(), "{passed:?}\n{}", *tproxy);
}

#[test]
fn a_session_keeps_its_rule_and_the_next_has_the_new_one() {
    let world = World::new();
    let file = File::new(&answering("a", 53, "one"));
    let tproxy = world.tproxy(&file.flags());
    let ask = |socket: &std::net::UdpSocket| {
        socket.send_to(b"?", (Family::V4.public(), 4000)).unwrap();
        let mut buffer = [0; 16];
        let (length, _) =
            socket.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{error}\n{}", *tproxy));
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    file.replace(&answering("a", 4000, "one"));
    hang_up(&tproxy, &["reloaded", "rules changed=1 (a)"]);
    let old = datagrams(&world.net.client, (Family::V4.client(), 0));
    assert_eq!(ask(&old), "one");
    file.replace(&(answering("b", 9999, "wrong") + &answering("a", 4000, "two")));
    hang_up(&tproxy, &["reloaded"]);
    assert_eq!(ask(&old), "one");
    let new = datagrams(&world.net.client, (Family::V4.client(), 0));
    assert_eq!(ask(&new), "two");
    assert_eq!(ask(&old), "one");
}

/// What `sk_lookup` needs to discard is made when a rule asks for it.
#[test]
fn a_rule_that_drops_what_is_for_the_host_can_come_later() {
    let world = World::new();
    let inbound = |action: &str| {
        format!("[[rules]]\nname = \"a\"\nscope = \"inbound\"\nports = [81]\naction = \"{action}\"\n")
    };
    let file = File::new(&inbound("respond=one"));
    let tproxy = world.tproxy(&file.flags());
    let own = Family::V4.lan();
    assert_eq!(told(&world.net.client, own, 81).unwrap(), "one", "{}", *tproxy);
    file.replace(&inbound("drop"));
    hang_up(&tproxy, &["reloaded", "rules changed=1 (a)"]);
    let silent = connect_within(&world.net.client, (own, 81), Duration::from_secs(1));
    assert_eq!(silent.unwrap_err().kind(), io::ErrorKind::TimedOut, "{}", *tproxy);
    file.replace(&inbound("respond=two"));
    hang_up(&tproxy, &["reloaded", "rules changed=1 (a)"]);
    assert_eq!(told(&world.net.client, own, 81).unwrap(), "two", "{}", *tproxy);
}

#[test]
fn nothing_changes_when_anything_is_wrong() {
    let world = World::new();
    add_port(&world.net.gateway);
    let good = answering("a", 80, "good");
    let file = File::new(&good);
    let tproxy = world.tproxy(&file.flags());
    for (text, says) in [
        (good.clone() + "x = 1\n", &["tproxy.toml:7:1", "x", "not known"][..]),
        (good.replace("\"lan\"", "\"gw-port\""), &["'gw-port' is a port of 'br0'"]),
        ("table = 77\n".to_owned() + &good, &["table cannot change while tproxy runs", "restart"]),
        (format!("{good}{}", "uid = [1]\n"), &["tproxy.toml:7:7", "uid"]),
    ] {
        file.replace(&text);
        let words: Vec<_> = ["not reloaded"].iter().chain(says).copied().collect();
        hang_up(&tproxy, &words);
        assert_eq!(told(&world.net.client, Family::V4.public(), 80).unwrap(), "good", "{}", *tproxy);
    }
    file.replace(&good);
    hang_up(&tproxy, &["reloaded", "nothing changed"]);
}

#[test]
fn a_file_that_is_watched_is_read_again_also_when_a_link_to_it_is_replaced() {
    let world = World::new();
    let file = File::new("");
    fs::remove_file(&file.0).unwrap();
    let path = |name: &str| file.directory().join(name);
    for text in ["one", "two"] {
        fs::create_dir(path(text)).unwrap();
        fs::write(path(text).join("tproxy.toml"), answering("a", 80, text)).unwrap();
    }
    symlink("one", path("..data")).unwrap();
    symlink("..data/tproxy.toml", &file.0).unwrap();
    let tproxy = world.tproxy(&format!("{} --watch", file.flags()));
    let told = || told(&world.net.client, Family::V4.public(), 80).unwrap();
    assert_eq!(told(), "one");
    let position = tproxy.position();
    symlink("two", path("..new")).unwrap();
    fs::rename(path("..new"), path("..data")).unwrap();
    tproxy.wait_line_from(position, &["reloaded", "rules changed=1"], PATIENCE).unwrap();
    assert_eq!(told(), "two");
    let position = tproxy.position();
    fs::write(path("two").join("tproxy.toml"), answering("a", 80, "three")).unwrap();
    tproxy.wait_line_from(position, &["reloaded", "rules changed=1"], PATIENCE).unwrap();
    assert_eq!(told(), "three");
}

/// Neither the client that asked nor a terminal is there any more when the time is over.
#[test]
fn what_is_not_confirmed_is_rolled_back_also_when_nobody_is_there_any_more() {
    let world = World::new();
    let file = File::new(&answering("a", 80, "one"));
    let tproxy = world.tproxy(&file.flags());
    let assert_told =
        |text: &str| assert_eq!(told(&world.net.client, Family::V4.public(), 80).unwrap(), text);
    file.replace(&answering("a", 80, "two"));
    let socket = format!("/run/tproxy/{}.sock", world.net.gateway.name());
    let mut client = UnixStream::connect(socket).unwrap();
    client.write_all(b"POST /reload?confirm=2s HTTP/1.1\r\nHost: tproxy\r\n\r\n").unwrap();
    tproxy.wait_line(&["reloaded", "rules changed=1", "2s"], PATIENCE).unwrap();
    // Without having read the answer.
    drop(client);
    assert_told("two");
    // What the kernel sends when the terminal goes has the file read again, which has to wait.
    hang_up(&tproxy, &["not reloaded", "waits to be confirmed"]);
    tproxy.wait_line(&["rolled back", "rules changed=1"], PATIENCE).unwrap();
    assert_told("one");
    // The file is as somebody left it, and may be tried again.
    hang_up(&tproxy, &["reloaded", "rules changed=1"]);
    assert_told("two");
}

#[test]
fn what_is_asked_for_at_once_is_done_one_after_the_other() {
    const CLIENTS: usize = 8;
    let world = World::new();
    let file = File::new(&answering("a", 80, "one"));
    let tproxy = world.tproxy(&file.flags());
    let at_once = |args: &str| each_at_once([args; CLIENTS], |args| tproxy_output(&world.net.gateway, args));
    file.replace(&answering("a", 80, "two"));
    let said = |ended: &[Ended], words: &str| ended.iter().filter(|one| one.said.contains(words)).count();
    // The first brings the change, and those after it find it there.
    let reloads = at_once("reload");
    assert_eq!(
        (said(&reloads, "rules changed=1 (a)"), said(&reloads, "nothing changed")),
        (1, CLIENTS - 1),
        "{}",
        *tproxy
    );
    // The first is done, and the others come while it waits.
    file.replace(&answering("a", 80, "three"));
    let reloads = at_once("reload --confirm 10m");
    assert_eq!(reloads.iter().filter(|one| one.status.success()).count(), 1, "{}", *tproxy);
    assert_eq!(said(&reloads, "an earlier reload waits to be confirmed"), CLIENTS - 1, "{}", *tproxy);
    let confirms = at_once("confirm");
    assert_eq!(confirms.iter().filter(|one| one.status.success()).count(), 1, "{}", *tproxy);
    assert_eq!(said(&confirms, "no reload waits to be confirmed"), CLIENTS - 1, "{}", *tproxy);
    assert_eq!(told(&world.net.client, Family::V4.public(), 80).unwrap(), "three", "{}", *tproxy);
}
