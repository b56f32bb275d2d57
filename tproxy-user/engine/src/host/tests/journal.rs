//! What is written down, made, undone and adopted.

use super::*;

/// An instance in a process of its own, in this namespace.
struct Victim(Child);

impl Victim {
    /// Returns once it has changed the host.
    fn start(root: &Root) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "host::tests::journal::victim", "--ignored", "--nocapture"])
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
