//! Against the kernel, in network namespaces that vanish with the thread that made them.
//! What the host looks like is asked of iproute2, which shares no code with us.

mod clsact;
mod control_socket;

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

/// An instance in a process of its own, in this namespace.
struct Victim(Child);

impl Victim {
    /// Returns once it has changed the host.
    fn start(root: &Root) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "host::tests::victim", "--ignored", "--nocapture"])
            .env(ROOT_OF_VICTIM, &root.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("changed")), "the victim failed");
        Self(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Victim {
    /// `kill -9`.
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
#[ignore = "what Victim runs; of no use by itself"]
fn victim() {
    let Some(root) = std::env::var_os(ROOT_OF_VICTIM) else { return };
    let mut journal = Journal::begin_in(Path::new(&root), IDENTITY).unwrap();
    apply_all(&mut journal);
    writeln!(io::stdout(), "changed").unwrap();
    // Until killed; should the parent die first, stdin ends.
    let _ = io::stdin().read(&mut [0]);
}

#[test]
fn what_is_applied_is_what_ip_shows_and_undo_removes_it() {
    in_namespace(|| {
        let root = Root::new();
        let before = host();
        let mut journal = root.begin().unwrap();
        apply_all(&mut journal);
        for ip in ["ip -4", "ip -6"] {
            let rules = run(&format!("{ip} -details rule"));
            let rule = "from all fwmark 0x20000000/0x30000000 iif lo lookup 2222 proto kernel";
            assert!(rules.contains(rule), "{rules}");
            assert!(rules.contains("222:") && rules.contains("later0 [detached]"), "{rules}");
            let routes = run(&format!("{ip} route show table 2222"));
            assert!(routes.starts_with("local default dev lo proto kernel"), "{routes}");
        }
        assert_eq!(host()[4], "1\n");
        journal.undo().unwrap();
        assert_eq!(host(), before);
        assert!(!root.0.exists(), "directories are removed with the last journal");
    });
}

#[test]
fn a_panic_undoes() {
    in_namespace(|| {
        let root = Root::new();
        let before = host();
        let mut journal = root.begin().unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            apply_all(&mut journal);
            panic!("half-way");
        }));
        assert!(panicked.is_err());
        assert_eq!(host(), before);
    });
}

#[test]
fn a_change_that_fails_leaves_nothing_behind() {
    in_namespace(|| {
        let root = Root::new();
        let before = host();
        let mut journal = root.begin().unwrap();
        let sysctl = Sysctl::new("nowhere0", Family::V4, "rp_filter").unwrap();
        assert!(journal.apply(Change::Sysctl { sysctl, value: "1".into() }).is_err());
        let sysctl = Sysctl::new("lo", Family::V4, "rp_filter").unwrap();
        assert!(journal.apply(Change::Sysctl { sysctl, value: "not a number".into() }).is_err());
        journal.undo().unwrap();
        assert_eq!(host(), before);
    });
}

#[test]
fn an_interface_that_disappears_is_no_obstacle() {
    in_namespace(|| {
        let root = Root::new();
        let before = host();
        run("ip link add gone0 type veth peer name gone1");
        let mut journal = root.begin().unwrap();
        let sysctl = |interface| Sysctl::new(interface, Family::V4, "accept_local").unwrap();
        let rule = Change::Rule { family: Family::V4, iif: "gone0".into() };
        let value = |interface| Change::Sysctl { sysctl: sysctl(interface), value: "1".into() };
        for change in [rule.clone(), value("gone0"), value("gone1")] {
            journal.apply(change).unwrap();
        }
        run("ip link del gone0");
        journal.revert(&rule).unwrap();
        journal.revert(&value("gone0")).unwrap();
        assert!(!run("ip rule").contains("gone0"));
        journal.undo().unwrap();
        assert_eq!(host(), before);
    });
}

#[test]
fn a_value_that_somebody_else_changed_since_is_left() {
    in_namespace(|| {
        let root = Root::new();
        let mut journal = root.begin().unwrap();
        let sysctl = Sysctl::new("lo", Family::V4, "rp_filter").unwrap();
        journal.apply(Change::Sysctl { sysctl: sysctl.clone(), value: "1".into() }).unwrap();
        sysctl.write("2").unwrap();
        journal.undo().unwrap();
        assert_eq!(sysctl.read().unwrap(), "2");
    });
}

#[test]
fn kill_9_is_made_good_by_cleanup() {
    in_namespace(|| {
        let root = Root::new();
        let before = host();
        let victim = Victim::start(&root);
        let pid = victim.pid();
        let running = root.cleanup();
        assert!(
            matches!(running[..], [Reclaimed::Running { pid: named, .. }] if named == pid),
            "{running:?}"
        );
        drop(victim);
        assert_ne!(host(), before);
        let undone = root.cleanup();
        assert_eq!(undone.len(), changes().len(), "{undone:?}");
        assert!(
            undone
                .iter()
                .all(|report| matches!(report, Reclaimed::Undone { pid: named, .. } if *named == pid))
        );
        assert_eq!(host(), before);
        assert!(root.cleanup().is_empty());
        assert!(!root.0.exists());
    });
}

#[test]
fn kill_9_is_made_good_by_the_next_start() {
    in_namespace(|| {
        let root = Root::new();
        let before = host();
        drop(Victim::start(&root));
        let mut journal = root.begin().unwrap();
        assert_eq!(host(), before);
        apply_all(&mut journal);
        journal.undo().unwrap();
        assert_eq!(host(), before);
    });
}

/// As if the journal were of an earlier boot, or of a namespace that is gone and whose inode number this one has.
#[test]
fn a_journal_of_another_namespace_says_nothing() {
    for (key, another) in [("boot", json!("another")), ("namespace", json!(1))] {
        in_namespace(move || {
            let root = Root::new();
            drop(Victim::start(&root));
            let now = host();
            root.edit(|record| record["place"][key] = another);
            assert!(root.cleanup().is_empty());
            assert_eq!(host(), now);
            assert!(!root.0.exists());
        });
    }
}

#[test]
fn what_was_held_in_another_namespace_is_not_taken_over() {
    in_namespace(|| {
        let root = Root::new();
        drop(Victim::start(&root));
        root.edit(|record| {
            record["held"] = json!(true);
            record["place"]["namespace"] = json!(1);
        });
        for ip in ["ip -4", "ip -6"] {
            run(&format!("{ip} rule del pref 222"));
            run(&format!("{ip} rule del pref 222"));
            run(&format!("{ip} route flush table 2222"));
        }
        let now = host();
        let other = Identity { table: 3333, priority: 333, ..IDENTITY };
        let journal = Journal::begin_in(&root.0, other).expect("nobody holds the mark here");
        assert_eq!(host(), now);
        journal.undo().unwrap();
    });
}

#[test]
fn a_journal_that_is_not_understood_is_put_aside_and_what_is_exactly_ours_is_adopted() {
    for newer in [false, true] {
        in_namespace(move || {
            let root = Root::new();
            let before = host();
            drop(Victim::start(&root));
            let file = root.file();
            if newer {
                root.edit(|record| record["format"] = json!(1000));
            } else {
                fs::write(&file, "{\"pid\": 1, \"ident").unwrap();
            }
            let text = fs::read(&file).unwrap();
            fs::write(file.with_extension("new"), "{").unwrap();
            let reports = root.cleanup();
            let [Reclaimed::Unreadable { path, .. }] = &reports[..] else { panic!("{reports:?}") };
            assert_eq!(fs::read(path).unwrap(), text);
            assert!(!file.exists());
            assert!(root.cleanup().is_empty(), "it is told once");
            // Its rules and routes are exactly those of the next one with the same identity.
            let journal = root.begin().unwrap();
            journal.undo().unwrap();
            assert_eq!(host()[..4], before[..4]);
            assert_eq!(fs::read(path).unwrap(), text);
        });
    }
}

#[test]
fn the_journal_of_a_living_instance_is_let_alone_whatever_it_says() {
    in_namespace(|| {
        let root = Root::new();
        let victim = Victim::start(&root);
        root.edit(|record| record["format"] = json!(1000));
        let text = fs::read(root.file()).unwrap();
        assert!(root.cleanup().is_empty());
        assert!(matches!(root.begin(), Err(HostError::Strange { .. })));
        assert_eq!(fs::read(root.file()).unwrap(), text);
        drop(victim);
    });
}

#[test]
fn what_is_ours_is_adopted_only_when_nobody_listens_with_the_mark() {
    in_namespace(|| {
        // As in containers, each with a /run of its own.
        let (root, fresh) = (Root::new(), Root::new());
        let victim = Victim::start(&root);
        let listener = crate::socket::listener(Family::V4, IDENTITY.mark).unwrap();
        let refused = fresh.begin().unwrap_err();
        assert!(matches!(refused, HostError::InUseElsewhere { .. }), "{refused}");
        drop((victim, listener));
        let mut journal = fresh.begin().unwrap();
        let left = host();
        apply_all(&mut journal);
        assert_eq!(host(), left, "it is there already");
        journal.undo().unwrap();
        assert!(!run("ip rule").contains("222:") && !run("ip -6 rule").contains("222:"));
        // What is nearly ours is somebody else's.
        run("ip rule add pref 222 iif lo fwmark 0x20000000/0x30000000 lookup 2222 protocol boot");
        assert!(matches!(fresh.begin(), Err(HostError::MarkTaken { .. })));
    });
}

#[test]
fn a_change_that_others_take_away_is_made_again_and_what_is_given_up_goes() {
    in_namespace(|| {
        let root = Root::new();
        let before = host();
        let mut journal = root.begin().unwrap();
        apply_all(&mut journal);
        let there = host();
        let v6 = "ip -6 rule del pref 222";
        for command in ["ip rule flush", v6, v6, "ip route flush table 2222"] {
            run(command);
        }
        run("ip rule add pref 32766 lookup main");
        run("ip rule add pref 32767 lookup default");
        fs::write("/proc/sys/net/ipv4/conf/lo/accept_local", "0").unwrap();
        let ensured = journal.ensure(changes());
        assert!(ensured.failures.is_empty(), "{:?}", ensured.failures);
        // Two rules of each family, the route of IPv4, and the sysctl.
        assert_eq!(ensured.restored.len(), 6, "{:?}", ensured.restored);
        assert_eq!(host(), there);
        assert!(journal.ensure(changes()).restored.is_empty());
        journal.give_up_all_but(&[Change::LocalRoute { family: Family::V4 }]).unwrap();
        assert_eq!(host()[4..], before[4..], "sysctls too");
        assert!(
            !run("ip rule").contains("222:") && run("ip route show table 2222").contains("local default")
        );
        journal.undo().unwrap();
        assert_eq!(host(), before);
    });
}

#[test]
fn a_second_instance_is_refused_by_name_of_the_first() {
    in_namespace(|| {
        let root = Root::new();
        let victim = Victim::start(&root);
        let now = host();
        let other_mark: Mark = "0x8000/0xc000".parse().unwrap();
        let same = [
            ("another mark", Identity { table: 3333, priority: 333, ..IDENTITY }),
            ("another table", Identity { mark: other_mark, priority: 333, ..IDENTITY }),
        ];
        for (flag, identity) in same {
            let error = Journal::begin_in(&root.0, identity).unwrap_err();
            assert!(matches!(error, HostError::InUse { pid, .. } if pid == victim.pid()), "{error:?}");
            assert!(error.to_string().contains(flag), "{error}");
        }
        assert_eq!(host(), now);
    });
}

#[test]
fn two_instances_coexist_and_the_last_restores_what_they_share() {
    in_namespace(|| {
        let root = Root::new();
        let before = host();
        let second = Identity { mark: "0x8000/0xc000".parse().unwrap(), table: 3333, priority: 333 };
        let mut first = root.begin().unwrap();
        first.apply(accept_local()).unwrap();
        let mut second = Journal::begin_in(&root.0, second).unwrap();
        second.apply(accept_local()).unwrap();
        first.undo().unwrap();
        assert_eq!(host()[4], "1\n", "the second still needs it");
        second.undo().unwrap();
        assert_eq!(host(), before);
    });
}

#[test]
fn a_rule_of_somebody_else_with_our_mark_is_named() {
    for ip in ["ip -4", "ip -6"] {
        in_namespace(move || {
            let root = Root::new();
            run(&format!("{ip} rule add pref 77 fwmark 0x20000000/0x20000000 lookup 100"));
            let error = root.begin().unwrap_err();
            assert!(matches!(error, HostError::MarkTaken { .. }), "{error:?}");
            assert!(error.to_string().contains("pref 77"), "{error}");
            run(&format!("{ip} rule del pref 77"));
            // wg-quick's, and a bit field of somebody else.
            run(&format!("{ip} rule add not fwmark 0xca6c lookup 51820"));
            run(&format!("{ip} rule add fwmark 0x40000/0xff0000 lookup 52"));
            root.begin().unwrap();
        });
    }
}

#[test]
fn a_route_of_somebody_else_in_our_table_is_named() {
    for (ip, prefix) in [("ip -4", "198.51.100.0/24"), ("ip -6", "2001:db8:5::/48")] {
        in_namespace(move || {
            let root = Root::new();
            run(&format!("{ip} route add unreachable {prefix} table 2222"));
            let error = root.begin().unwrap_err();
            assert!(matches!(error, HostError::TableTaken { table: 2222, .. }), "{error:?}");
            assert!(error.to_string().contains(prefix), "{error}");
        });
    }
}

#[test]
fn a_journal_that_cannot_be_written_names_the_path() {
    in_namespace(|| {
        let root = Root::new();
        fs::write(&root.0, "a file where a directory should be").unwrap();
        let error = root.begin().unwrap_err();
        assert!(error.to_string().contains(root.0.to_str().unwrap()), "{error}");
        fs::remove_file(&root.0).unwrap();
    });
}

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
fn the_local_table_is_what_the_host_takes_for_itself() {
    in_namespace(|| {
        run("ip link add lan0 type veth peer name lan1");
        run("ip addr add 192.0.2.1/24 dev lan0");
        run("ip link set lan0 up");
        run("ip link set lan1 up");
        add_v6_address("2001:db8::1/64", "lan0");
        run("ip route add multicast 239.1.0.0/16 dev lan0 table local");
        run("ip route add local 198.51.100.0/24 dev lo table 100");
        run("ip route add local default dev lo table 101");
        run("ip route add local 203.0.113.0/24 dev lo table 2222");
        let local = LocalTable::load(2222).unwrap();
        let own =
            ["192.0.2.1", "192.0.2.255", "127.9.9.9", "198.51.100.7", "2001:db8::1", "::1", "239.1.2.3"];
        for addr in own {
            assert!(local.contains(addr.parse().unwrap()), "{addr}: {local:?}");
        }
        for addr in ["192.0.2.2", "8.8.8.8", "203.0.113.1", "2001:db8::2", "2001:4860::8888"] {
            assert!(!local.contains(addr.parse().unwrap()), "{addr}: {local:?}");
        }
        assert_eq!(local.prefixes().collect::<LocalTable>(), local);
    });
}

#[test]
fn routed_interfaces_lead_somewhere() {
    in_namespace(|| {
        for name in ["wan", "lan", "idle"] {
            run(&format!("ip link add {name}0 type veth peer name {name}1"));
            run(&format!("ip link set {name}0 up"));
            run(&format!("ip link set {name}1 up"));
        }
        run("ip route add default dev wan0");
        run("ip -6 route add 2001:db8:1::/64 dev lan0");
        let links = links::snapshot().unwrap();
        let index = |name| links.iter().find(|link| link.name == name).unwrap().index;
        assert_eq!(routed_interfaces().unwrap(), [index("wan0"), index("lan0")].into());
    });
}

#[test]
fn links_are_told_apart_and_their_changes_reported() {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut monitor = Monitor::new().unwrap();
            run("ip link add eth7 type veth peer name eth8");
            run("ip tuntap add dev tun7 mode tun");
            assert!(monitor.next().await.unwrap().links);
            let links = links::snapshot().unwrap();
            let layer = |name| links.iter().find(|link| link.name == name).map(|link| (link.layer, link.up));
            assert_eq!(layer("lo"), Some((Layer::Loopback, true)));
            assert_eq!(layer("eth7"), Some((Layer::Ethernet, false)));
            assert_eq!(layer("tun7"), Some((Layer::Ip, false)));

            run("ip addr add 192.0.2.9/32 dev lo");
            while !monitor.next().await.unwrap().local_table {}
            run("ip route add 198.51.100.0/24 dev lo");
            while !monitor.next().await.unwrap().routes {}
            let idle = tokio::time::timeout(Duration::from_millis(50), monitor.next()).await;
            assert!(idle.is_err(), "nothing happened, and yet {idle:?}");
        });
    });
}

const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1);

/// A connection over `lo` to the address of a transparent listener; (its side, the client's side).
fn connect(to: SocketAddr, domain: Domain, mark: u32) -> (Socket, Socket) {
    let listener = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
    listener.set_ip_transparent_v4(true).unwrap();
    listener.set_mark(mark).unwrap();
    listener.bind(&to.into()).unwrap();
    listener.listen(1).unwrap();
    let client = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
    let from = match to.ip() {
        IpAddr::V4(_) => CLIENT_V4.into(),
        IpAddr::V6(addr) if addr.to_ipv4_mapped().is_some() => CLIENT_V4.to_ipv6_mapped().into(),
        IpAddr::V6(_) => IpAddr::V6(CLIENT_V6),
    };
    client.bind(&SocketAddr::new(from, 0).into()).unwrap();
    client.connect(&to.into()).unwrap();
    (listener.accept().unwrap().0, client)
}

/// The other side closes last, so ours stays in TIME_WAIT.
fn time_wait(to: SocketAddr, domain: Domain, mark: u32) {
    let (ours, mut theirs) = connect(to, domain, mark);
    drop(ours);
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
}

/// Ours is closed with data that the other side has no room for, so it stays in FIN_WAIT1 without a process.
fn orphan(to: SocketAddr, mark: u32) -> Socket {
    let (mut ours, theirs) = connect(to, Domain::for_address(to), mark);
    ours.set_nonblocking(true).unwrap();
    while ours.write(&[0; 65536]).is_ok() {}
    theirs
}

/// `STATE LOCAL` of each socket that does not listen.
fn sockets() -> Vec<String> {
    let lines = run("ss -Htan state connected");
    let fields = lines.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut sockets: Vec<_> = fields.map(|fields| format!("{} {}", fields[0], fields[3])).collect();
    sockets.sort();
    sockets
}

#[test]
fn lingering_sockets_with_foreign_addresses_and_our_mark_are_destroyed() {
    in_namespace(|| {
        run(&format!("ip addr add {CLIENT_V4}/32 dev lo"));
        add_v6_address(&format!("{CLIENT_V6}/128"), "lo");
        run("ip route add local 203.0.113.0/24 dev lo table 2222");
        run("ip rule add to 203.0.113.0/24 lookup 2222");
        run("ip -6 route add local 2001:db8::/64 dev lo table 2222");
        run("ip -6 rule add to 2001:db8::/64 lookup 2222");
        let own = IDENTITY.mark.own();
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();

        time_wait(addr("203.0.113.1:81"), Domain::IPV4, own);
        time_wait(addr("203.0.113.1:82"), Domain::IPV4, own | 1);
        time_wait(addr("[2001:db8::1]:83"), Domain::IPV6, own);
        time_wait(addr("[::ffff:203.0.113.1]:84"), Domain::IPV6, own);
        let _theirs = orphan(addr("203.0.113.1:85"), own);
        let (_live, _theirs) = connect(addr("203.0.113.1:86"), Domain::IPV4, own);

        time_wait(addr("203.0.113.1:91"), Domain::IPV4, 0);
        time_wait(addr("203.0.113.1:92"), Domain::IPV4, IDENTITY.mark.steer());
        time_wait(addr("10.9.0.1:93"), Domain::IPV4, own);
        time_wait(addr("127.0.0.1:94"), Domain::IPV4, own);

        let before = sockets();
        let ours = |socket: &String| (81..=86).any(|port| socket.ends_with(&format!(":{port}")));
        assert_eq!(before.iter().filter(|socket| ours(socket)).count(), 6, "{before:#?}");
        assert!(before.contains(&"FIN-WAIT-1 203.0.113.1:85".to_owned()), "{before:#?}");

        let local = LocalTable::load(2222).unwrap();
        assert_eq!(lingering::destroy(IDENTITY.mark, &local).unwrap(), 6, "{before:#?}");
        let after = sockets();
        assert!(!after.iter().any(ours), "{after:#?}");
        for kept in ["203.0.113.1:91", "203.0.113.1:92", "10.9.0.1:93", "127.0.0.1:94"] {
            assert!(after.contains(&format!("TIME-WAIT {kept}")), "{kept}: {after:#?}");
        }
        assert_eq!(lingering::destroy(IDENTITY.mark, &local).unwrap(), 0);
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
