//! What a kernel without tcx does, on one that has it; what heals, what is gone back to, and what was forgotten.

mod forgotten;
mod replies;

use std::{io::Read, net::IpAddr, net::TcpStream};

use tproxy_netns::Topology;

use super::*;
use crate::{
    config::{Action, Reach, Scope, Selector, SessionLimits, Source, Steer, Timeouts, Treatment},
    generation::RuleNumber,
    host::{
        fault::{Step, inject},
        links::Changed,
    },
};

fn on_lan() -> Reach {
    Reach { interfaces: vec!["lan".into()], ..Scope::Forwarded.into() }
}

fn config(steer: Steer, mark: &str, number: u32, port: u16, text: &str) -> Config {
    let selector = Selector { ports: vec![port..=port].into(), ..on_lan().into() };
    let rule = Rule::new("1", selector, Action::Respond(text.into()));
    let second = Duration::from_secs(1);
    Config {
        mark: mark.parse().unwrap(),
        table: number,
        priority: number,
        steer,
        workers: 1,
        timeouts: Timeouts {
            connect: second,
            idle: 10 * second,
            drain: second,
            udp: second,
            udp_stream: second,
            keepalive: second,
        },
        sessions: SessionLimits { total: 16, per_client: 16 },
        ..Config::new(vec![rule])
    }
}

/// One that remembers UDP flows for longer than a slow machine takes for a test: what was silent for so long is new.
fn remembering(steer: Steer, rules: Vec<Rule>, workers: usize) -> Instance {
    let config = config(steer, "0x2/0x3", 1000, 1000, "");
    let timeouts = Timeouts { udp_stream: Duration::from_secs(600), ..config.timeouts };
    Instance::start(Config { rules, timeouts, workers, ..config }, false).unwrap()
}

/// What somebody who stays silent is told.
fn told(net: &Topology, to: IpAddr, port: u16) -> String {
    let mut text = String::new();
    let connected = net.client.enter(|| TcpStream::connect((to, port)));
    connected
        .and_then(|mut stream| stream.read_to_string(&mut text))
        .unwrap_or_else(|error| panic!("{error}"));
    text
}

#[test]
fn clsact_filters_do_what_tcx_links_do_and_go_with_their_instance() {
    for steer in [Steer::SkLookup, Steer::SkAssign] {
        let net = Topology::three().unwrap();
        let tc = || {
            ["qdisc show", "filter show dev lan ingress", "filter show dev wan ingress"]
                .map(|what| net.gateway.run(&format!("tc {what}")).unwrap())
        };
        let start = |config| {
            net.gateway
                .enter(|| Instance::start_with(Attachment::Clsact, Arc::default(), config, false))
                .unwrap()
        };
        let before = tc();
        let first = start(config(steer, "0x2/0x3", 1000, 80, "first"));
        // Bits 0 and 16 of a mark are as good as any.
        let second = start(config(steer, "0x10000/0x30000", 1001, 81, "second"));
        for family in tproxy_netns::Family::ALL {
            assert_eq!(told(&net, family.public(), 80), "first\n");
            assert_eq!(told(&net, family.public(), 81), "second\n");
        }
        net.gateway.enter(|| first.stop()).unwrap();
        for family in tproxy_netns::Family::ALL {
            assert_eq!(told(&net, family.public(), 81), "second\n");
        }
        let [_, lan, _] = tc();
        assert!(lan.contains("handle 0x10000 ") && !lan.contains("handle 0x2 "), "{lan}");
        net.gateway.enter(|| second.stop()).unwrap();
        assert_eq!(tc(), before);
    }
}

/// Whether somebody who stays silent is told `text`.
fn is_told(net: &Topology, to: IpAddr, port: u16, text: &str) -> bool {
    let limit = Duration::from_secs(1);
    let connected = net.client.enter(|| TcpStream::connect_timeout(&(to, port).into(), limit));
    let Ok(mut stream) = connected else { return false };
    stream.set_read_timeout(Some(limit)).unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).is_ok() && got.trim_end() == text
}

/// Has the instance do what is due, until `done`.
fn until(instance: &mut Instance, done: impl Fn(&Instance) -> bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while !done(instance) {
        assert!(Instant::now() < patience, "{:?}", instance.health());
        runtime.block_on(instance.unsettled());
        instance.reconcile();
    }
}

#[test]
fn a_step_that_fails_is_named_and_heals_by_itself() {
    let net = Topology::three().unwrap();
    net.gateway.enter(|| {
        let first = config(Steer::SkLookup, "0x2/0x3", 1000, 80, "first");
        let mut instance = Instance::start(first, false).unwrap();
        for (step, word) in [(Step::Rule, "Rule"), (Step::Attach, "Attach"), (Step::Install, "Install")] {
            inject(&[step]);
            net.gateway.ip("link del lan").unwrap();
            net.plug_lan().unwrap();
            // Twice: the interface is named as it was, and there may be word of an end between.
            instance.follow(Changed::EVERYTHING);
            let missing = instance.health().missing.clone();
            // The rule names the interface and outlasts it.
            if step != Step::Rule {
                assert!(missing.iter().any(|error| error.contains(word)), "{step:?}: {missing:?}");
            }
            inject(&[]);
            until(&mut instance, |instance| instance.health().missing.is_empty());
            for family in tproxy_netns::Family::ALL {
                assert_eq!(told(&net, family.public(), 80), "first\n", "{step:?}");
            }
        }
        inject(&[Step::Rule]);
        net.gateway.run("ip rule del pref 1000").unwrap();
        net.gateway.run("ip -6 rule del pref 1000").unwrap();
        instance.follow(Changed::OURS);
        assert_eq!(instance.health().missing.len(), 2, "{:?}", instance.health());
        assert!(!is_told(&net, tproxy_netns::Family::V4.public(), 80, "first"));
        inject(&[]);
        until(&mut instance, |instance| instance.health().missing.is_empty());
        for family in tproxy_netns::Family::ALL {
            assert_eq!(told(&net, family.public(), 80), "first\n");
        }
        instance.stop().unwrap();
    });
}

#[test]
fn a_roll_back_fills_no_table_while_the_rules_before_are_there() {
    let net = Topology::three().unwrap();
    net.gateway.enter(|| {
        let at = |port| config(Steer::SkLookup, "0x2/0x3", 1000, port, "hello");
        let to = tproxy_netns::Family::V4.public();
        let assert_taken = |taken, passed| {
            assert_eq!(told(&net, to, taken), "hello\n");
            assert!(!is_told(&net, to, passed, "hello"));
        };
        let mut instance = Instance::start(at(80), false).unwrap();
        let first = instance.before();
        instance.reload(at(81)).unwrap();
        assert_taken(81, 80);
        inject(&[Step::Install]);
        assert!(instance.reload(at(82)).is_err(), "for other rules tables are filled");
        assert_taken(81, 82);
        let second = instance.before();
        instance.roll_back(first);
        assert_taken(80, 81);
        instance.roll_back(second);
        assert_taken(81, 80);
        inject(&[]);
        instance.stop().unwrap();
    });
}

/// What the kernel takes for a cgroup that goes with this.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find_map(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            (fields[2] == "cgroup2").then(|| fields[1])
        });
        let mount = mount.expect("mount -t cgroup2 none /sys/fs/cgroup");
        let path = PathBuf::from(format!("{mount}/tproxy-{}", tproxy_netns::random_suffix()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_roll_back_needs_nothing_that_has_gone_since() {
    let net = Topology::three().unwrap();
    let cgroup = Cgroup::new();
    net.gateway.enter(|| {
        let at = |port| {
            let mut config = config(Steer::SkLookup, "0x2/0x3", 1000, port, "hello");
            let of_cgroup = Selector { cgroups: vec![cgroup.0.clone()], ..Scope::Outbound.into() };
            let of_cgroup = Rule::new("cgroup", of_cgroup, Action::Respond("out".into()));
            config.rules.extend((port == 80).then_some(of_cgroup));
            config
        };
        let mut instance = Instance::start(at(80), false).unwrap();
        let hooks = instance.datapath.attached().len();
        let before = instance.before();
        instance.reload(at(81)).unwrap();
        // It lasts longer than the flows of the rules before may.
        instance.superseded[0].until = Some(Instant::now());
        instance.retire();
        assert_eq!(instance.datapath.attached().len(), hooks, "what those need stays in place");
        std::fs::remove_dir(&cgroup.0).unwrap();
        net.gateway.ip("link del lan").unwrap();
        instance.follow(Changed::EVERYTHING);
        assert!(!instance.roll_back(before).is_empty());
        assert_eq!(instance.health().missing, [""; 0]);
        assert_eq!((instance.generations.latest().number(), &instance.config), (2, &at(80)));
        instance.retire();
        assert_eq!(instance.superseded.len(), 1, "only the rules that were not confirmed");
        net.plug_lan().unwrap();
        instance.follow(Changed::EVERYTHING);
        until(&mut instance, |instance| instance.health().missing.is_empty());
        let hits = || instance.datapath.rule_hits().unwrap()["1"];
        let counted = hits();
        for family in tproxy_netns::Family::ALL {
            assert_eq!(told(&net, family.public(), 80), "hello\n");
            assert!(!is_told(&net, family.public(), 81, "hello"));
        }
        assert_eq!(hits(), counted + 2);
        instance.stop().unwrap();
    });
}

#[test]
fn an_own_address_that_could_not_be_noted_is_noted_by_the_next_attempt() {
    let net = Topology::three().unwrap();
    net.gateway.enter(|| {
        let first = config(Steer::SkLookup, "0x2/0x3", 1000, 80, "first");
        let mut instance = Instance::start(first, false).unwrap();
        inject(&[Step::Address]);
        net.gateway.ip("address add 203.0.113.9/32 dev wan").unwrap();
        instance.follow(Changed { local_table: true, ..Changed::NOTHING });
        assert!(instance.health().missing[0].contains("Address"), "{:?}", instance.health());
        let own = "203.0.113.9".parse().unwrap();
        assert!(is_told(&net, own, 80, "first"), "it is taken for somebody else's");
        inject(&[]);
        until(&mut instance, |instance| instance.health().missing.is_empty());
        assert!(!is_told(&net, own, 80, "first"));
        instance.stop().unwrap();
    });
}

#[test]
fn what_others_take_away_comes_back() {
    for attachment in [Attachment::Tcx, Attachment::Clsact] {
        let net = Topology::three().unwrap();
        net.gateway.enter(|| {
            let config = config(Steer::SkLookup, "0x2/0x3", 1000, 80, "first");
            // By `lo` too, for the sake of its sysctl.
            let outbound = Rule::new("out", Scope::Outbound, Action::Respond("out".into()));
            let config = Config { rules: [config.rules, vec![outbound]].concat(), ..config };
            let mut instance = Instance::start_with(attachment, Arc::default(), config, false).unwrap();
            let ways: &[&str] = match attachment {
                Attachment::Tcx => &[],
                Attachment::Clsact => &["tc qdisc del dev lan clsact"],
            };
            let common = [
                "ip rule del pref 1000",
                "ip -6 rule del pref 1000",
                "ip route flush table 1000",
                "ip -6 route flush table 1000",
                "sysctl -qw net.ipv4.conf.lo.accept_local=0",
            ];
            for (count, way) in (1..).zip(common.iter().chain(ways)) {
                net.gateway.run(way).unwrap();
                until(&mut instance, |instance| instance.health().restored >= count);
                assert_eq!(net.gateway.sysctl("net.ipv4.conf.lo.accept_local").unwrap(), "1");
                for family in tproxy_netns::Family::ALL {
                    assert_eq!(told(&net, family.public(), 80), "first\n", "{way}");
                }
            }
            instance.stop().unwrap();
            assert_eq!(net.gateway.sysctl("net.ipv4.conf.lo.accept_local").unwrap(), "0");
        });
    }
}

#[test]
fn hooks_that_somebody_detaches_are_attached_again() {
    let net = Topology::three().unwrap();
    net.gateway.enter(|| {
        let first = config(Steer::SkLookup, "0x2/0x3", 1000, 80, "first");
        let mut instance = Instance::start(first, false).unwrap();
        for link in instance.datapath.link_ids() {
            net.gateway.run(&format!("bpftool link detach id {link}")).unwrap();
        }
        let hooks = instance.plan.hooks.len() as u64;
        until(&mut instance, |instance| instance.health().restored == hooks + 1);
        for family in tproxy_netns::Family::ALL {
            assert_eq!(told(&net, family.public(), 80), "first\n");
        }
        instance.stop().unwrap();
    });
}

#[test]
fn many_interfaces_have_common_rules_that_hold_whatever_marks_mean() {
    let net = Topology::three().unwrap();
    for key in ["conf.all.src_valid_mark", "tcp_fwmark_accept", "fwmark_reflect", "conf.all.rp_filter"] {
        net.gateway.set_sysctl(&format!("net.ipv4.{key}"), "1").unwrap();
    }
    net.gateway.set_sysctl("net.ipv6.fwmark_reflect", "1").unwrap();
    for pair in 0..3 {
        net.gateway.ip(&format!("link add more{pair} type veth peer name peer{pair}")).unwrap();
    }
    let rules = || net.gateway.run("ip rule show").unwrap().lines().count();
    let before = rules();
    net.gateway.enter(|| {
        let mut config = config(Steer::SkLookup, "0x2/0x3", 1000, 80, "first");
        let spoofed = Treatment { source: Source::Client, ..Action::Direct.into() };
        config.rules.push(Rule::new("far", on_lan(), spoofed));
        let mut instance = Instance::start(config, false).unwrap();
        let upstream = |family: tproxy_netns::Family| {
            let server = net.server.enter(|| std::net::TcpListener::bind((family.server(), 4000))).unwrap();
            let client = net.client.enter(|| TcpStream::connect((family.server(), 4000))).unwrap();
            let (_, seen) = server.accept().unwrap();
            assert_eq!(seen.ip(), family.client());
            drop(client);
        };
        let works = || {
            for family in tproxy_netns::Family::ALL {
                assert_eq!(told(&net, family.public(), 80), "first\n");
                upstream(family);
            }
        };
        assert_eq!(rules(), before + 3);
        works();
        // The order counts, and comes back with them.
        net.gateway.run("ip rule del pref 1000 iif lo").unwrap();
        until(&mut instance, |instance| instance.health().restored == 1);
        assert_eq!(rules(), before + 3);
        works();
        net.gateway.ip("link del more0\nlink del more1\nlink del more2").unwrap();
        instance.follow(Changed::EVERYTHING);
        assert_eq!(rules(), before + instance.plan.delivering.len());
        works();
        instance.stop().unwrap();
        assert_eq!(rules(), before);
    });
}

#[test]
fn ipv6_may_be_switched_on_after_the_start_and_off_again() {
    let net = Topology::three().unwrap();
    let switch = |off: &str| net.gateway.set_sysctl("net.ipv6.conf.all.disable_ipv6", off).unwrap();
    switch("1");
    net.gateway.enter(|| {
        let first = config(Steer::SkLookup, "0x2/0x3", 1000, 80, "first");
        let mut instance = Instance::start(first, false).unwrap();
        let [v4, v6] = tproxy_netns::Family::ALL;
        assert_eq!(told(&net, v4.public(), 80), "first\n");
        for _ in 0..2 {
            switch("0");
            net.gateway.ip(&format!("address add {}/64 dev lan nodad", v6.lan())).unwrap();
            instance.follow(Changed::EVERYTHING);
            until(&mut instance, |instance| instance.health().missing.is_empty());
            for family in [v4, v6] {
                assert_eq!(told(&net, family.public(), 80), "first\n");
            }
            switch("1");
            instance.follow(Changed::EVERYTHING);
            until(&mut instance, |instance| instance.health().missing.is_empty());
            assert_eq!(told(&net, v4.public(), 80), "first\n");
            assert!(!net.gateway.run("ip -6 rule").unwrap().contains("1000:"));
        }
        switch("0");
        instance.stop().unwrap();
    });
}

#[test]
fn what_only_earlier_rules_needed_goes_when_they_have_no_flow_any_more() {
    let net = Topology::three().unwrap();
    let first = config(Steer::SkLookup, "0x2/0x3", 1000, 80, "first");
    let next = Config {
        rules: vec![Rule::new("2", Scope::Inbound, Action::Respond("second".into()))],
        ..first.clone()
    };
    net.gateway.enter(|| {
        let mut instance = Instance::start(first, false).unwrap();
        let hooks = |instance: &Instance| instance.datapath.attached().len();
        let needed = hooks(&instance);
        assert!(needed > 0);
        assert!(!instance.reload(next.clone()).unwrap().is_empty());
        instance.retire();
        let with_both = hooks(&instance);
        assert!(with_both >= needed && instance.plan.delivering.contains("lan"));
        let flow = instance.generations.rule(RuleNumber(0)).unwrap();
        instance.superseded[0].until = Some(Instant::now());
        instance.retire();
        assert_eq!((hooks(&instance), instance.superseded.len()), (with_both, 1), "it has a flow");
        assert!(instance.generations.rule(RuleNumber(0)).is_none());
        drop(flow);
        instance.retire();
        let plan = instance.surroundings.plan(&next.rules);
        assert_eq!((hooks(&instance), instance.superseded.len()), (plan.hooks.len(), 0));
        assert!(!instance.plan.delivering.contains("lan"));
        instance.stop().unwrap();
    });
}

#[test]
fn a_start_that_is_given_up_ends_at_once_and_leaves_nothing() {
    let net = Topology::three().unwrap();
    let config = config(Steer::SkLookup, "0x2/0x3", 1000, 80, "never");
    let given_up = Arc::new(AtomicBool::new(true));
    net.gateway.enter(|| {
        let refused = Instance::start_unless(Arc::clone(&given_up), config.clone(), false).err();
        assert!(matches!(refused, Some(InstanceError::Datapath(DatapathError::GivenUp))), "{refused:?}");
        assert!(host::on_record().unwrap().is_empty());
        given_up.store(false, std::sync::atomic::Ordering::Relaxed);
        let mut instance = Instance::start_unless(Arc::clone(&given_up), config, false).unwrap();
        // That it is to stop keeps nothing from what its live flows need.
        given_up.store(true, std::sync::atomic::Ordering::Relaxed);
        instance.reconcile();
        assert_eq!(instance.health().missing, [""; 0]);
        instance.stop().unwrap();
    });
}
