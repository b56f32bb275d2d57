//! What is printed is what it was made of.

use proptest::prelude::*;

use super::{draft::Draft, *};
use crate::policy::generate::any_rule;

fn any_time() -> impl Strategy<Value = Duration> {
    (1u64..365 * 24 * 3_600_000).prop_map(Duration::from_millis)
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Direct),
        Just(Action::Drop),
        Just(Action::Reject),
        Just(Action::Pass),
        any::<String>().prop_map(|text| Action::Respond(text.into())),
        any::<(std::net::Ipv6Addr, u16)>()
            .prop_map(|(addr, port)| Action::Upstream(SocketAddr::from((addr, port | 1)).into())),
        any_server().prop_map(|server| Action::Upstream(server.into())),
        any_group().prop_map(|group| Action::Upstream(Upstream::Group(group.into()))),
    ]
}

fn any_server() -> impl Strategy<Value = UpstreamServer> {
    let scheme = prop::sample::select(vec![
        Scheme::Tcp,
        Scheme::Socks5,
        Scheme::Http,
        Scheme::ProxyV1,
        Scheme::ProxyV2,
    ]);
    let address = any::<std::net::IpAddr>().prop_filter("anywhere", |address| !address.is_unspecified());
    let host = prop_oneof![
        address.prop_map(Host::Address),
        "([a-z]{1,9}[.-]){0,3}[a-z]{1,9}".prop_map(|name| Host::Name(name.into())),
    ];
    (scheme, host, 1u16..).prop_map(|(scheme, host, port)| UpstreamServer { scheme, host, port })
}

/// Of one name there is one group.
fn any_group() -> impl Strategy<Value = UpstreamGroup> {
    let pick = prop::sample::select(vec![Pick::First, Pick::RoundRobin, Pick::Least, Pick::Hash]);
    let check =
        prop::option::of(any_time().prop_map(|every| Check { every: every.max(Duration::from_millis(100)) }));
    let servers =
        prop::collection::hash_set(any_server(), 1..4).prop_map(|servers| servers.into_iter().collect());
    (any::<u64>(), servers, pick, check).prop_map(|(name, servers, pick, check)| {
        let name = Some(format!("group \"{name}\"").into());
        UpstreamGroup { name, servers, pick, check, credentials: None }
    })
}

fn truncated(listed: Listed<IpNet>) -> Listed<IpNet> {
    Listed { own: listed.own.iter().map(IpNet::trunc).collect(), ..listed }
}

/// Rules that differ in everything, though some of them are contradictory.
fn any_config() -> impl Strategy<Value = Config> {
    let rule = (
        any_rule(),
        any_action(),
        prop::sample::select(vec![Source::Host, Source::Client, Source::ClientPort]),
        prop::sample::select(vec![Nat::EndpointIndependent, Nat::PerDestination]),
        prop::option::of(any_time()),
        prop::option::of(any_time()),
        prop::option::of(1usize..1 << 40),
        "[^\\p{Cc}]{1,16}",
    );
    let rule = rule.prop_map(|(rule, action, source, nat, connect, idle, connections, name)| {
        let of = rule.selector;
        let selector = Selector {
            ports: of.ports.iter().filter(|ports| *ports.start() > 0).cloned().collect::<Vec<_>>().into(),
            from: truncated(of.from),
            to: truncated(of.to),
            except: truncated(of.except),
            cgroups: if of.reach.scope == Scope::Outbound { vec!["a \"b\"".into()] } else { vec![] },
            ..of
        };
        let treatment = Treatment {
            action,
            source,
            nat,
            timeouts: RuleTimeouts { connect, idle, keepalive: idle.map(|_| Duration::from_secs(7)) },
            egress: RuleEgress {
                interface: connections.map(|_| "wan2".into()),
                mark: idle.map(|_| Bits::new(1, 0xff).unwrap()),
                source: connect.map(|_| [10, 0, 0, 9].into()),
            },
            limits: RuleLimits {
                connections: connections.and_then(NonZeroUsize::new),
                ..RuleLimits::default()
            },
            ..rule.treatment
        };
        Rule::new(&name, selector, treatment)
    });
    let times = (any_time(), any_time(), any_time(), any_time(), any_time());
    (prop::collection::vec(rule, 1..4), times, 1u32..1 << 30, 1usize..1025, 1usize..1 << 40).prop_map(
        |(rules, times, number, workers, total)| Config {
            unused_sets: vec![],
            unused_upstreams: vec![],
            name: (workers % 3 == 0).then(|| format!("gw-{number}").parse().unwrap()),
            metrics: (workers % 3 == 1).then(|| format!("[::1]:{}", number % 65_536).parse().unwrap()),
            rules,
            mark: Mark::new(number, number << 1 | number).unwrap_or(Mark::DEFAULT),
            table: number | 1 << 10,
            priority: 1 + number % 32_765,
            steer: if workers % 2 == 0 { Steer::SkLookup } else { Steer::SkAssign },
            on_exit: if total % 2 == 0 { OnExit::Pass } else { OnExit::Reject },
            firewall: (number % 2 == 0).into(),
            workers,
            timeouts: Timeouts {
                connect: times.0,
                idle: times.1,
                drain: times.2,
                udp: times.3,
                udp_stream: times.4,
                keepalive: Duration::from_secs(1 + total as u64 % 32_767),
            },
            sessions: SessionLimits { total, per_client: 1 + total / 2 },
            connections: ConnectionLimits { total, per_client: 1 + total / 3 },
        },
    )
}

/// The same without what would be refused.
fn without_contradictions(mut config: Config) -> Option<Config> {
    for (index, rule) in config.rules.iter_mut().enumerate() {
        rule.name = format!("{index}{}", rule.name).into();
        let Reach { scope, interfaces, .. } = &mut rule.selector.reach;
        match scope {
            Scope::Forwarded if interfaces.is_empty() => interfaces.push("lan".into()),
            Scope::Inbound => interfaces.clear(),
            _ => {}
        }
    }
    let rules = std::mem::take(&mut config.rules);
    let alone = |rule: &Rule| Config { rules: vec![rule.clone()], ..config.clone() };
    config.rules =
        rules.into_iter().filter(|rule| check(Draft::from(&alone(rule)), Form::File).is_ok()).collect();
    (!config.rules.is_empty()).then_some(config)
}

proptest! {
    #[test]
    fn a_printed_configuration_is_read_as_the_same(
        config in any_config().prop_filter_map("contradictory", without_contradictions)
    ) {
        let text = config.to_toml().unwrap();
        let again = read(&text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        prop_assert_eq!(&again, &config, "{}", text);
        prop_assert_eq!(again.to_toml().unwrap(), text);
    }

    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        let rule = Rule::new("a", Scope::Inbound, Action::Respond(text.as_str().into()));
        let config = good("[[rules]]\nscope = 'inbound'\naction = 'drop'");
        let config = Config { rules: vec![rule], ..config };
        prop_assert_eq!(good(&config.to_toml().unwrap()), config);
    }
}
