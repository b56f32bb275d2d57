//! Files, good and bad.

mod any_input;
mod mistakes;
mod printed;
mod remarks;
mod shipped;

use std::{fs, num::NonZeroUsize, path::PathBuf};

use ipnet::IpNet;
use tproxy_netns::random_suffix;

use super::*;
use crate::mark::Bits;

/// Where no file of a set is.
const FILE: &str = "tproxy.toml";

fn read(text: &str) -> Result<Config, Errors> {
    parse(FILE.as_ref(), text.as_bytes())
}

#[track_caller]
fn good(text: &str) -> Config {
    read(text).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

/// A directory of our own, removed with all it holds.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("tproxy-{}", random_suffix()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}

#[test]
fn a_rule_is_what_its_keys_say() {
    let config = good(
        r#"
        name = "gateway"
        metrics = "127.0.0.1:9464"
        mark = "0x2/0x3"
        table = 7
        priority = 9
        steer = "sk_assign"
        workers = 3
        timeouts = { connect = "1s", idle = "2m", drain = "500ms", udp = "3s", udp_stream = "4s" }
        limits = { udp_sessions = 100, udp_sessions_per_client = 7 }
        [[rules]]
        name = "first"
        scope = "outbound"
        protocol = "tcp"
        interfaces = ["eth0", "tun0"]
        from = ["10.0.0.0/8"]
        to = ["192.0.2.7", "2001:db8::/32", "::/0", "0.0.0.0/0"]
        except = ["192.0.2.0/28"]
        ports = [80, "443", "8000-8999"]
        uid = [0, 1000]
        cgroup = ["/system.slice"]
        action = "upstream=[2001:db8::1]:8443"
        timeouts = { connect = "2s", idle = "1h" }
        limits.connections = 12
        [[rules]]
        scope = "forwarded"
        interfaces = ["lan"]
        protocol = "udp"
        action = "direct"
        source = "client-port"
        nat = "per-destination"
        "#,
    );
    let seconds = Duration::from_secs;
    let [first, second] = &config.rules[..] else { panic!("{config:?}") };
    assert_eq!((config.mark, config.table, config.priority), (Mark::new(2, 3).unwrap(), 7, 9));
    assert_eq!(
        (config.name, config.metrics),
        (Some("gateway".parse().unwrap()), Some(([127, 0, 0, 1], 9464).into()))
    );
    assert_eq!((config.steer, config.workers), (Steer::SkAssign, 3));
    let timeouts = Timeouts {
        connect: seconds(1),
        idle: seconds(120),
        drain: Duration::from_millis(500),
        udp: seconds(3),
        udp_stream: seconds(4),
        keepalive: seconds(60),
    };
    assert_eq!(config.timeouts, timeouts);
    assert_eq!(config.sessions, SessionLimits { total: 100, per_client: 7 });
    assert_eq!(
        (&*first.name, first.selector.reach.scope, first.selector.reach.protocols),
        ("first", Scope::Outbound, Protocols::Tcp)
    );
    assert_eq!(first.selector.reach.interfaces, ["eth0", "tun0"]);
    assert_eq!(first.selector.from.own, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(first.selector.to.own.len(), 4);
    assert_eq!(first.selector.except.own, ["192.0.2.0/28".parse().unwrap()]);
    assert_eq!(first.selector.ports.own, [80..=80, 443..=443, 8000..=8999]);
    assert_eq!(
        (&first.selector.uids[..], &first.selector.cgroups[..]),
        (&[0, 1000][..], &["/system.slice".into()][..])
    );
    assert_eq!(first.treatment.action, Action::Upstream("[2001:db8::1]:8443".parse().unwrap()));
    assert_eq!(
        first.treatment.timeouts,
        RuleTimeouts { connect: Some(seconds(2)), idle: Some(seconds(3600)), keepalive: None }
    );
    assert_eq!(first.treatment.limits.connections, NonZeroUsize::new(12));
    assert_eq!((&*second.name, second.treatment.source), ("rule-1", Source::ClientPort));
    assert_eq!(
        (second.selector.reach.protocols, second.treatment.nat),
        (Protocols::Udp, Nat::PerDestination)
    );
    assert_eq!(second.treatment.timeouts, RuleTimeouts::default());
    assert_eq!(second.treatment.limits, RuleLimits::default());
}

#[test]
fn what_is_not_written_is_what_flags_default_to() {
    let config = good("[[rules]]\nscope = 'inbound'\naction = 'drop'");
    assert_eq!(config.timeouts, Timeouts::default());
    assert_eq!((config.mark, config.table, config.priority), (Mark::DEFAULT, 29_808, 100));
    assert_eq!(config.rules, [Rule::new("rule-0", Scope::Inbound, Action::Drop)]);
}

#[test]
fn sets_are_shared_and_may_be_elsewhere() {
    let directory = Directory::new();
    directory.write("nets", "# all of them\n10.0.0.0/8 # ours\r\n\n  2001:db8::1\n");
    directory.write("numbers", "80\n8000-8999\n");
    let file = directory.write(
        FILE,
        r#"
        [sets]
        prefixes = { nets = { file = "nets" }, one = ["192.0.2.1"], none = [] }
        ports.web = { file = "numbers" }
        [[rules]]
        scope = "inbound"
        from = ["@nets", "192.0.2.0/24", "@none"]
        except = ["@one"]
        ports = ["@web", 443]
        action = "drop"
        [[rules]]
        scope = "outbound"
        to = ["@nets"]
        action = "drop"
        "#,
    );
    let config = load(&file).unwrap();
    let [first, second] = &config.rules[..] else { panic!("{config:?}") };
    let all: Vec<_> = first.selector.from.iter().map(ToString::to_string).collect();
    assert_eq!(all, ["192.0.2.0/24", "10.0.0.0/8", "2001:db8::1/128"]);
    assert_eq!(first.selector.ports.iter().cloned().collect::<Vec<_>>(), [443..=443, 80..=80, 8000..=8999]);
    assert!(Arc::ptr_eq(&first.selector.from.sets[0], &second.selector.to.sets[0]));
}

#[test]
fn the_most_rules_and_prefixes_are_read_in_no_time() {
    use std::fmt::Write as _;
    let directory = Directory::new();
    let net = |index: u32| std::net::Ipv4Addr::from(index << 8);
    let nets = (0..50_000).map(|index| format!("{}/24\n", net((1 << 20) + index))).collect::<String>();
    directory.write("nets", nets);
    let mut text = "[sets.prefixes]\nnets = { file = 'nets' }\n".to_owned();
    for rule in 0..4096_u32 {
        write!(text, "[[rules]]\nname = 'r{rule}'\nscope = 'outbound'\naction = 'direct'\nto = ['@nets'")
            .unwrap();
        for own in 0..12 {
            write!(text, ", '{}/24'", net(rule * 12 + own)).unwrap();
        }
        writeln!(text, "]\nports = [{}]", rule + 1).unwrap();
    }
    let file = directory.write(FILE, &text);
    let start = std::time::Instant::now();
    let config = load(&file).unwrap();
    let took = start.elapsed();
    assert_eq!(config.rules.len(), 4096);
    assert!(took < Duration::from_secs(5), "{took:?}");
}
