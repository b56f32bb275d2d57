use clap::Parser as _;
use proptest::prelude::*;
use tproxy::{
    config::{Action, Reach, Selector},
    host::links::Layer,
};

use super::*;
use crate::cli::{Cli, Subcommand, one_line};

fn parse(line: &str) -> Result<Args, String> {
    let words: Vec<_> = line.split(' ').collect();
    match Cli::try_parse_from(words).map_err(|error| one_line(&error))?.command {
        Subcommand::Explain(args) => Ok(args),
        _ => panic!("not explain"),
    }
}

fn links() -> Vec<Link> {
    vec![Link { index: 3, name: "eth1".into(), layer: Layer::Ethernet, up: true, master: None, parent: None }]
}

fn local() -> LocalTable {
    ["192.0.2.1/32", "127.0.0.0/8", "fd00::1/128"].map(|prefix| prefix.parse().unwrap()).into_iter().collect()
}

fn of(line: &str) -> Result<Case, String> {
    case(&parse(line)?, &links(), &local()).map_err(|error| error.to_string())
}

#[test]
fn the_scope_is_told_by_the_addresses_and_by_who_sends() {
    for (line, scope) in [
        ("tcp 10.0.0.5:5 8.8.8.8:443 --interface eth1", Scope::Forwarded),
        ("udp [fd00::5]:5 [2001:db8::1]:53 --interface eth1", Scope::Forwarded),
        ("tcp 192.0.2.1:5 8.8.8.8:443 --interface eth1", Scope::Outbound),
        ("tcp 10.0.0.5:5 8.8.8.8:443 --interface eth1 --uid 5", Scope::Outbound),
        ("tcp 10.0.0.5:5 192.0.2.1:443", Scope::Inbound),
        ("tcp 10.0.0.5:5 [::ffff:192.0.2.1]:443", Scope::Inbound),
        ("tcp 10.0.0.5:5 8.8.8.8:443 --scope outbound --interface eth1", Scope::Outbound),
    ] {
        let case = of(&format!("tproxy explain {line}")).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(case.scope, scope, "{line}");
    }
}

#[test]
fn mistakes_are_named_on_one_line_with_a_remedy() {
    for (line, says) in [
        ("tcp 10.0.0.5 8.8.8.8:443", "ADDR:PORT"),
        ("tcp 10.0.0.5:5 8.8.8.8:99999", "ADDR:PORT"),
        ("icmp 10.0.0.5:5 8.8.8.8:443", "tcp"),
        ("tcp 10.0.0.5:5 [2001:db8::1]:443", "families"),
        ("tcp 10.0.0.5:5 8.8.8.8:443", "--interface"),
        ("tcp 10.0.0.5:5 8.8.8.8:443 --interface eth7", "eth7"),
        ("tcp 10.0.0.5:5 192.0.2.1:443 --scope inbound --uid 3", "--scope"),
    ] {
        let error = of(&format!("tproxy explain {line}")).err().expect(line);
        assert!(error.contains(says) && !error.contains('\n'), "{line}: {error}");
    }
}

fn rules() -> Vec<Rule> {
    let reach = Reach { interfaces: vec!["eth1".into()], ..Scope::Forwarded.into() };
    let web = Selector {
        ports: vec![443..=443].into(),
        except: vec!["8.8.4.4/32".parse().unwrap()].into(),
        ..reach.clone().into()
    };
    vec![Rule::new("web", web, Action::Direct), Rule::new("rest", reach, Action::Reject)]
}

fn verdict(line: &str) -> Explanation {
    let case = of(&format!("tproxy explain {line}")).unwrap();
    let surroundings = Surroundings { links: links(), routed: [3].into(), families: Vec::new() };
    of_rules(&case, &rules(), &surroundings, &local()).unwrap()
}

#[test]
fn each_dimension_is_shown_and_the_first_match_named() {
    let web = verdict("tcp 10.0.0.5:5 8.8.8.8:443 --interface eth1");
    assert_eq!(
        (web.verdict, web.reason, web.rule, web.name.as_deref()),
        ("steer", "steer_rule", Some(0), Some("web"))
    );
    let text = web.to_string();
    for line in
        ["destination  8.8.8.8: rules 0-1", "port         443: rules 0-1", "match        rule 0 'web'"]
    {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let excepted = verdict("tcp 10.0.0.5:5 8.8.4.4:443 --interface eth1");
    assert!(excepted.to_string().contains("destination  8.8.4.4: rule 1\n"), "{excepted}");
    assert_eq!((excepted.verdict, excepted.rule), ("reject", Some(1)));
    assert_eq!(verdict("udp 10.0.0.5:5 224.0.0.1:53 --interface eth1").reason, "pass_never_intercepted");
    let to_host = verdict("tcp 10.0.0.5:5 192.0.2.1:443 --interface eth1 --scope forwarded");
    assert_eq!(to_host.reason, "pass_host_address");
    assert_eq!(verdict("tcp 10.0.0.5:5 192.0.2.1:443").reason, "pass_no_rule");
}

proptest! {
    /// Whatever is written on the command line: an explanation, or one line that says what is wrong.
    #[test]
    fn any_words_are_explained_or_refused_on_one_line(words in prop::collection::vec(word(), 0..9)) {
        let line = ["tproxy".to_owned(), "explain".to_owned()].into_iter().chain(words);
        match Cli::try_parse_from(line) {
            Err(error) => {
                // --help and the likes have more to say.
                if error.use_stderr() && error.kind() != clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                    prop_assert!(!one_line(&error).contains('\n') && !one_line(&error).is_empty());
                }
            }
            Ok(Cli { command: Subcommand::Explain(args), .. }) => match case(&args, &links(), &local()) {
                Ok(case) => {
                    let surroundings = Surroundings { links: links(), routed: [3].into(), families: Vec::new() };
                    let explained = of_rules(&case, &rules(), &surroundings, &local()).unwrap();
                    prop_assert!(["steer", "pass", "reject", "drop"].contains(&explained.verdict));
                    prop_assert!(serde_json::to_string(&explained).is_ok());
                }
                Err(error) => prop_assert!(!error.to_string().contains('\n')),
            },
            Ok(_) => prop_assert!(false, "another command"),
        }
    }

    #[test]
    fn an_endpoint_is_read_as_it_is_written(addr: std::net::IpAddr, port: u16) {
        let canonical = SocketAddr::new(addr.to_canonical(), port);
        prop_assert_eq!(endpoint(&SocketAddr::new(addr, port).to_string()), Ok(canonical));
    }
}

/// Words that belong there, words that nearly do, and any.
fn word() -> impl Strategy<Value = String> {
    let endpoint = (any::<std::net::IpAddr>(), any::<u16>())
        .prop_map(|(addr, port)| SocketAddr::new(addr, port).to_string());
    prop_oneof![
        3 => prop::sample::select(vec!["tcp", "udp", "--interface", "eth1", "--scope", "forwarded", "inbound", "--uid", "7", "--json", "--", "10.0.0.5:5", "8.8.8.8:443"])
            .prop_map(str::to_owned),
        2 => endpoint,
        1 => "\\PC{0,12}",
    ]
}
