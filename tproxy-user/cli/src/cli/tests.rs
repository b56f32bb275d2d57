use clap::CommandFactory as _;

use super::*;

fn config(line: &str) -> Result<Config, String> {
    let parsed = Cli::try_parse_from(line.split(' ')).map_err(|error| one_line(&error))?;
    match parsed.command {
        Subcommand::Run(run) => run.flags.into_config().map_err(|mistakes| mistakes.0.join("\n")),
        other => panic!("{other:?} is not a run"),
    }
}

#[test]
fn the_documented_commands_are_accepted() {
    for line in [
        "tproxy run --scope forwarded --interface eth1 --to 0.0.0.0/0 --to ::/0 --port 80,443,8000-8999 --action direct",
        "tproxy run --scope outbound --to 93.184.0.0/16 --port 443 --uid 1000 --action upstream=10.9.9.9:8443",
        "tproxy run --scope inbound --port 8080 --action direct --source client",
        "tproxy run --scope outbound --interface lo --to 8.8.8.8 --port 80 --action respond='hello_world'",
        "tproxy run --scope forwarded --interface a --action drop --steer sk_assign --mark 0x2/0x3 --table 7 --priority 9 --workers 3 --log-format json -vv",
    ] {
        assert!(config(line).is_ok(), "{line}: {:?}", config(line));
    }
    let rule = &config(
        "tproxy run --scope forwarded --interface a --port 80,443,8000-8999 --to 8.8.8.8 --action direct",
    )
    .unwrap()
    .rules[0];
    assert_eq!(rule.selector.ports.own, [80..=80, 443..=443, 8000..=8999]);
    assert_eq!(rule.selector.to.own, ["8.8.8.8/32".parse().unwrap()]);
}

#[test]
fn mistakes_are_named_on_one_line_with_a_remedy() {
    for (line, says) in [
        ("tproxy run --scope forwarded --action direct", "--interface"),
        ("tproxy run --scope forwarded --interface lo --action direct", "--scope outbound"),
        ("tproxy run --scope inbound --interface a --action direct", "leave it out"),
        ("tproxy run --scope outbound --action direct --source client", "leave it out"),
        ("tproxy run --scope inbound --action direct --source client-port", "use --source client"),
        ("tproxy run --scope inbound --uid 3 --action direct", "--scope outbound"),
        ("tproxy run --scope inbound --action drop --source client", "--action direct"),
        ("tproxy run --scope inbound --from 10.0.0.0/8 --to ::/0 --action direct", "family"),
        ("tproxy run --scope inbound --to 10.0.0.1/8 --action direct", "10.0.0.0/8"),
        ("tproxy run --scope inbound --to 10.0.0.0/33 --action direct", "192.0.2.0/24"),
        ("tproxy run --scope inbound --port 0 --action direct", "8000-8999"),
        ("tproxy run --scope inbound --port 90-80 --action direct", "80-90"),
        ("tproxy run --scope inbound --port 65536 --action direct", "8000-8999"),
        ("tproxy run --scope inbound --action upstream=10.0.0.1", "upstream=ADDR:PORT"),
        ("tproxy run --scope inbound --action shrug", "respond=TEXT"),
        ("tproxy run --scope inbound --action direct --table 254", "--table"),
        ("tproxy run --scope inbound --action direct --priority 0", "--priority"),
        ("tproxy run --scope inbound --action direct --mark 1/1", "leave one clear"),
        ("tproxy run --scope inbound --action direct --workers 0", "--workers"),
        ("tproxy run --scope inbound --action direct --idle-timeout 5", "10s"),
        ("tproxy run --action direct", "--scope"),
    ] {
        let error = config(line).expect_err(line);
        assert!(error.contains(says) && !error.contains('\n'), "{line}: {error}");
    }
}

#[test]
fn flags_are_a_file_with_one_rule() {
    let flags = config(
        "tproxy run --scope outbound --interface eth0 --from 10.0.0.0/8 --to ::/0 --to 0.0.0.0/0 --except 192.0.2.0/24 \
         --port 80,8000-8999 --uid 7 --cgroup a --proto tcp --action upstream=192.0.2.1:80 --mark 0x2/0x3 --table 7 \
         --priority 9 --workers 3 --steer sk_assign --connect-timeout 1s --idle-timeout 2s --drain-timeout 3s \
         --udp-timeout 4s --udp-stream-timeout 5s --udp-sessions 100 --udp-sessions-per-client 7",
    )
    .unwrap();
    let file = tproxy::config::parse("tproxy.toml".as_ref(), flags.to_toml().unwrap().as_bytes()).unwrap();
    assert_eq!(file, flags);
    assert_eq!(&*flags.rules[0].name, "cli");
}

#[test]
fn all_contradictions_are_named_by_their_flags() {
    let lines = config("tproxy run --scope inbound --interface a --uid 3 --action drop --table 0 --to @a")
        .unwrap_err();
    let lines: Vec<_> = lines.lines().collect();
    assert_eq!(lines.len(), 4, "{lines:#?}");
    for (line, words) in lines.iter().zip([
        "error: --table must not be",
        "error: @a names a set, which only a file has",
        "error: --interface has no meaning in --scope inbound",
        "error: --uid is about the sending process",
    ]) {
        assert!(line.starts_with(words), "{line}");
    }
}

#[test]
fn a_file_goes_with_no_other_flag_of_the_configuration() {
    for flag in ["--scope inbound", "--workers 2", "--idle-timeout 1s", "--udp-sessions 7", "--to ::/0"] {
        let error = config(&format!("tproxy run --config /no/such {flag}")).unwrap_err();
        assert!(error.contains("leave the other flags out"), "{flag}: {error}");
    }
    let error = config("tproxy run --config /no/such --log-format json -v").unwrap_err();
    assert!(error.starts_with("/no/such: cannot be read"), "{error}");
}

#[test]
fn every_command_shows_an_example() {
    Cli::command().debug_assert();
    for command in Cli::command().get_subcommands_mut().filter(|command| !command.is_hide_set()) {
        let help = command.render_long_help().to_string();
        assert!(
            help.contains("Example") && help.contains(&format!("\n  tproxy {}", command.get_name())),
            "{help}"
        );
    }
    assert!(Cli::command().render_long_help().to_string().contains("Exit codes:"));
}

#[test]
fn the_examples_of_the_help_are_good() {
    for command in Cli::command().get_subcommands_mut() {
        let help = command.render_long_help().to_string();
        for line in help.lines().filter_map(|line| line.strip_prefix("  tproxy ")) {
            let line = line.split(" > ").next().unwrap();
            Cli::try_parse_from(format!("tproxy {line}").split(' '))
                .unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    for shell in <clap_complete::Shell as clap::ValueEnum>::value_variants() {
        let mut script = Vec::new();
        completions(*shell, &mut script).unwrap();
        let script = String::from_utf8(script).unwrap();
        assert!(script.contains("cleanup") && script.contains("udp-stream-timeout"), "{shell}: {script}");
    }
    let directory = std::env::temp_dir().join(format!("tproxy-{}", tproxy_netns::random_suffix()));
    assert!(man(&directory).unwrap_err().to_string().contains("name a directory"));
    std::fs::create_dir(&directory).unwrap();
    man(&directory).unwrap();
    let page = std::fs::read_to_string(directory.join("tproxy-run.1")).unwrap();
    assert!(page.contains("drain") && page.contains("Examples"), "{page}");
    assert!(std::fs::read_to_string(directory.join("tproxy.1")).unwrap().contains("Exit codes"));
    std::fs::remove_dir_all(&directory).unwrap();
}
