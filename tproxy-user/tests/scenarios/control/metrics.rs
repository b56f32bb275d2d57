use super::*;

#[test]
fn prometheus_is_told_the_same_at_both_places() {
    let world = World::new();
    let _tproxy = world.tproxy(&format!("{FORWARDED} --port 80 --action direct --metrics 127.0.0.1:9464"));
    for family in Family::ALL {
        world.curl(family.server(), 80).assert_nginx((family.server(), 80).into(), family.wan(), &"direct");
    }
    let at = |url: &str, flags: &[&str]| {
        let output = world
            .net
            .gateway
            .command("curl")
            .args(["-sS", "--max-time", "10", "-i"])
            .args(flags)
            .arg(url)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let socket = socket(&world);
    for text in [
        at("http://127.0.0.1:9464/metrics", &[]),
        at("http://tproxy/metrics", &["--unix-socket", &socket]),
        format!("application/openmetrics-text\n{}", ask(&world, "metrics")),
    ] {
        assert!(text.contains("application/openmetrics-text"), "{text}");
        for line in [
            "tproxy_connections_accepted_total 2.0",
            "tproxy_accept_latency_seconds_count 2",
            "tproxy_connect_latency_seconds_count 2",
            "tproxy_packets_total{verdict=\"steer\",reason=\"rule\"} 2.0",
            "tproxy_rule_hits_total{rule=\"cli\"} 2.0",
            "tproxy_map_entries{map=\"DECISIONS\"} 0.0",
            "tproxy_map_capacity{map=\"DECISIONS\"} 16384.0",
            "# EOF",
        ] {
            assert!(text.lines().any(|it| it.trim_end() == line), "{line}\n{text}");
        }
    }
    let other = at("http://127.0.0.1:9464/status", &[]);
    assert!(other.starts_with("HTTP/1.1 404"), "{other}");
}

#[test]
fn an_address_that_is_taken_is_said_in_one_line() {
    let world = World::new();
    let _listener = listen(&world.net.gateway, ([127, 0, 0, 1], 9464));
    let refused =
        tproxy_output(&world.net.gateway, &format!("run {FORWARDED} --action pass --metrics 127.0.0.1:9464"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        refused.said.contains("127.0.0.1:9464") && refused.said.contains("--metrics"),
        "{}",
        refused.said
    );
    assert_eq!(refused.said.lines().count(), 1, "{}", refused.said);
}
