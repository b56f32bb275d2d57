use super::*;

fn config(line: &str) -> Result<Config, String> {
    let parsed = Cli::try_parse_from(line.split(' ')).map_err(|error| one_line(&error))?;
    match parsed.command {
        Command::Run(run) => run.into_config().map_err(|error| error.to_string()),
        Command::Cleanup => panic!("not a run"),
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
    assert_eq!(rule.ports.own, [80..=80, 443..=443, 8000..=8999]);
    assert_eq!(rule.to.own, ["8.8.8.8/32".parse().unwrap()]);
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
