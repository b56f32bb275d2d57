//! Rules from a file, on the real path.

use std::{
    fmt::Write as _,
    fs,
    io::{ErrorKind, Read as _},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use crate::{clean::Snapshot, support::*};

/// Files in a directory of our own, which goes with this.
pub(crate) struct Files(PathBuf);

impl Files {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("tproxy-{}", tproxy_netns::random_suffix()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Writes a file, and says what flags run with it.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        format!("--config {}", path.display())
    }

    /// The same of a shipped example, whose clients are behind `lan` here.
    fn example(&self, name: &str) -> String {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples").join(name);
        self.write(name, &fs::read_to_string(shipped).unwrap().replace("\"eth1\"", "\"lan\""))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}

#[test]
fn the_first_match_wins_whatever_the_actions() {
    let world = World::new();
    let files = Files::new();
    files.write("refused", "# comes from elsewhere\n8.8.8.8/32\n2001:4860::/32 # and more\n");
    for engine in ENGINES {
        let tproxy = world.tproxy(&files.write(
            "tproxy.toml",
            &format!(
                r#"
                steer = "{engine}"
                [sets.prefixes]
                refused = {{ file = "refused" }}
                servers = ["10.2.0.2", "fd00:2::2"]
                [sets.ports]
                plain = [80, "81"]
                high = ["8000-8999"]
                [[rules]]
                name = "left-alone"
                scope = "forwarded"
                interfaces = ["lan"]
                to = ["@servers"]
                ports = [81]
                action = "pass"
                [[rules]]
                name = "refused"
                scope = "forwarded"
                interfaces = ["lan"]
                to = ["@refused"]
                ports = ["@plain"]
                action = "reject"
                [[rules]]
                name = "answered"
                scope = "forwarded"
                interfaces = ["lan"]
                to = ["@servers", "@refused"]
                ports = ["@plain", "@high"]
                except = ["8.8.8.0/24"]
                action = "respond=answered"
                [[rules]]
                name = "never-asked"
                scope = "forwarded"
                interfaces = ["lan"]
                to = ["@servers"]
                ports = ["@plain"]
                action = "drop"
                [[rules]]
                name = "rest"
                scope = "forwarded"
                interfaces = ["lan"]
                action = "direct"
                "#
            ),
        ));
        for family in Family::ALL {
            let context = format!("{engine} {family:?}\n{}", *tproxy);
            let passed = world.curl(family.server(), 81);
            passed.assert_nginx((family.server(), 81).into(), family.client(), &context);
            assert_eq!(world.curl(family.public(), 80).code, Some(7), "{context}");
            world.curl(family.server(), 80).assert_body("answered", &context);
            world.curl(family.server(), 8443).assert_body("answered", &context);
            let rest = world.curl(family.server(), 443);
            rest.assert_nginx((family.server(), 443).into(), family.wan(), &context);
        }
        // Its exception comes before the set that names the address.
        let excepted = world.curl(Family::V4.public(), 8080);
        excepted.assert_nginx((Family::V4.public(), 8080).into(), Family::V4.wan(), &*tproxy);
        tproxy.wait_line(&["accepted", "rule=rest"], PATIENCE).unwrap();
    }
}

#[test]
fn scopes_live_in_one_instance() {
    let world = World::new();
    let files = Files::new();
    let rule = |scope: &str, more: &str| {
        format!(
            "[[rules]]\nname = '{scope}'\nscope = '{scope}'\nports = [80]\naction = 'respond={scope}'\n{more}\n"
        )
    };
    let text = rule("forwarded", "interfaces = ['lan']") + &rule("outbound", "") + &rule("inbound", "");
    let tproxy = world.tproxy(&files.write("tproxy.toml", &text));
    for family in Family::ALL {
        world.curl(family.server(), 80).assert_body("forwarded", &*tproxy);
        curl(&world.net.gateway, "", family.server(), 80).assert_body("outbound", &*tproxy);
        world.curl(family.lan(), 80).assert_body("inbound", &*tproxy);
        let other = world.curl(family.server(), 81);
        other.assert_nginx((family.server(), 81).into(), family.client(), &*tproxy);
    }
}

#[test]
fn a_rule_has_time_limits_of_its_own() {
    let world = World::new();
    let files = Files::new();
    let mut tproxy = world.tproxy(&files.write(
        "tproxy.toml",
        "timeouts.idle = '1h'\n\
         [[rules]]\nname = 'short'\nscope = 'forwarded'\ninterfaces = ['lan']\nports = [7]\naction = 'direct'\n\
         timeouts.idle = '400ms'\n\
         [[rules]]\nname = 'long'\nscope = 'forwarded'\ninterfaces = ['lan']\nports = [9]\naction = 'direct'\n",
    ));
    let server = Family::V4.server();
    for port in [7, 9] {
        serve(&world.net.server, (server, port), echo);
    }
    let long = connect_within(&world.net.client, (server, 9), PATIENCE).unwrap();
    let short = connect_within(&world.net.client, (server, 7), PATIENCE).unwrap();
    assert_echo(&short, "one", &*tproxy);
    assert_echo(&long, "one", &*tproxy);
    tproxy.wait_line(&["closed", "rule=short", "end=idle_timeout"], PATIENCE).unwrap();
    assert_echo(&long, "still there", &*tproxy);
    drop(long);
    assert_eq!(counted_at_the_end(&mut tproxy, "idle_timeout"), 1);
}

#[test]
fn a_rule_has_no_more_connections_than_it_may() {
    let world = World::new();
    let files = Files::new();
    let mut tproxy = world.tproxy(&files.write(
        "tproxy.toml",
        "workers = 2\n\
         [[rules]]\nname = 'few'\nscope = 'forwarded'\ninterfaces = ['lan']\nports = [7]\naction = 'direct'\n\
         limits.connections = 3\n\
         [[rules]]\nname = 'many'\nscope = 'forwarded'\ninterfaces = ['lan']\nports = [9]\naction = 'direct'\n",
    ));
    let server = Family::V4.server();
    for port in [7, 9] {
        serve(&world.net.server, (server, port), echo);
    }
    let open = |port| connect_within(&world.net.client, (server, port), PATIENCE).unwrap();
    let few: Vec<_> = (0..3).map(|_| open(7)).collect();
    few.iter().for_each(|stream| assert_echo(stream, "in", &*tproxy));
    for _ in 0..4 {
        // The reset may come before anybody asks whether the connection is there.
        let one_more = connect_within(&world.net.client, (server, 7), PATIENCE);
        let error = one_more.and_then(|mut stream| stream.read(&mut [0])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{}", *tproxy);
    }
    assert_echo(&open(9), "another rule", &*tproxy);
    drop(few);
    tproxy.wait_line(&["closed", "rule=few", "end=eof"], PATIENCE).unwrap();
    assert_eq!(counted_at_the_end(&mut tproxy, "over_limit"), 4);
}

#[test]
fn the_gateway_example_does_what_it_says() {
    let world = World::new();
    let files = Files::new();
    files.example("blocked.txt");
    let tproxy = world.tproxy(&files.example("gateway.toml"));
    for family in Family::ALL {
        let web = world.curl(family.public(), 80);
        web.assert_nginx((family.public(), 80).into(), family.client(), &*tproxy);
        tproxy
            .wait_line(
                &["accepted", &format!("dst={}", family.public()).replace("=2001", "=[2001")],
                PATIENCE,
            )
            .unwrap();
    }
    let position = tproxy.position();
    let private = world.curl(Family::V4.server(), 80);
    private.assert_nginx((Family::V4.server(), 80).into(), Family::V4.client(), &*tproxy);
    for blocked in ["203.0.113.7", "198.51.100.7", "2001:db8:bad::1"] {
        let got = world.curl(blocked.parse().unwrap(), 80);
        assert_eq!(got.code, Some(7), "{blocked}: {got:?}\n{}", *tproxy);
    }
    let after = &tproxy.lines()[position..];
    assert!(!after.iter().any(|line| line.contains("accepted")), "{after:#?}");
}

#[test]
fn the_sidecar_example_does_what_it_says() {
    let world = World::new();
    let files = Files::new();
    let tproxy = tproxy_in(&world.net.server, &files.example("sidecar.toml"));
    for family in Family::ALL {
        // What is sent to the application: it sees the client, and nobody else does.
        let inbound = world.curl(family.server(), 80);
        inbound.assert_nginx((family.server(), 80).into(), family.client(), &*tproxy);
        tproxy.wait_line(&["accepted", "rule=ingress", &family.client().to_string()], PATIENCE).unwrap();
        // What it sends, but not what the agent does.
        serve(&world.net.client, (family.client(), 81), echo);
        let outbound = connect_within(&world.net.server, (family.client(), 81), PATIENCE).unwrap();
        assert_echo(&outbound, "out", &*tproxy);
        tproxy
            .wait_line(
                &["accepted", "rule=egress", &format!("dst={}", socket(family.client(), 81))],
                PATIENCE,
            )
            .unwrap();
        let position = tproxy.position();
        curl(&world.net.server, "setpriv --reuid 1337 --clear-groups --", family.client(), 82);
        let after = &tproxy.lines()[position..];
        assert!(!after.iter().any(|line| line.contains("accepted")), "{after:#?}");
    }
}

fn socket(address: IpAddr, port: u16) -> std::net::SocketAddr {
    (address, port).into()
}

#[test]
fn the_bench_example_runs_next_to_another_instance() {
    let world = World::new();
    let files = Files::new();
    let _other = world.tproxy("--scope forwarded --interface lan --port 443 --action respond=other");
    let bench = world.tproxy(&files.example("bench.toml"));
    for family in Family::ALL {
        let got = world.curl(family.server(), 80);
        got.assert_nginx((family.server(), 80).into(), family.wan(), &*bench);
        world.curl(family.server(), 443).assert_body("other", &*bench);
    }
}

/// As many rules and prefixes as there may be, and more distinct sets than a small configuration's map holds.
#[test]
fn thousands_of_rules_and_prefixes_decide_as_written() {
    let world = World::new();
    let files = Files::new();
    let net = |index: u32| Ipv4Addr::from((100 << 24) + (index << 4));
    let mut text = "[sets.prefixes]\nlarge = { file = 'large' }\n".to_owned();
    let large: String = (0..50_000).map(|index| format!("{}/28\n", net((1 << 18) + index))).collect();
    files.write("large", &large);
    let rule = |text: &mut String, to: &str, more: &str| {
        let to = format!("to = [{to}]\nports = [80]\n{more}\n");
        writeln!(text, "[[rules]]\nscope = 'forwarded'\ninterfaces = ['lan']\n{to}").unwrap();
    };
    for index in 0..4094 {
        let own: Vec<_> = (0..12).map(|own| format!("'{}/28'", net(index * 12 + own))).collect();
        rule(&mut text, &own.join(", "), &format!("action = 'respond={index}'"));
    }
    rule(&mut text, "'@large'", "action = 'respond=large'");
    rule(&mut text, "'100.0.0.0/8', '::/0'", "action = 'respond=rest'");
    let _tproxy = world.tproxy(&files.write("tproxy.toml", &text));
    let answer = |address: Ipv4Addr, expected: &str| {
        world.curl(address.into(), 80).assert_body(expected, &expected);
    };
    for index in [0, 1, 63, 64, 2047, 4093] {
        answer(net(index * 12), &index.to_string());
        answer(net(index * 12 + 11), &index.to_string());
    }
    answer(net(1 << 18), "large");
    answer(net((1 << 18) + 49_999), "large");
    answer(net((1 << 18) + 50_000), "rest");
    world.curl(Family::V6.public(), 80).assert_body("rest", &"v6");
    let passed = world.curl(Family::V4.server(), 80);
    passed.assert_nginx((Family::V4.server(), 80).into(), Family::V4.client(), &"passed");
}

#[test]
fn nothing_starts_when_anything_is_wrong() {
    let world = World::new();
    let files = Files::new();
    let config = files.write(
        "tproxy.toml",
        "tabel = 7\n[[rules]]\nscope = 'forwarded'\naction = 'dorp'\n[[rules]]\nscope = 'inbound'\naction = 'drop'\n",
    );
    let before = Snapshot::take(&world.net.gateway);
    let file = config.trim_start_matches("--config ");
    for command in [format!("run {config}"), format!("config {config}"), format!("check {file}")] {
        let ended = tproxy_output(&world.net.gateway, &command);
        let lines: Vec<_> = ended.said.lines().collect();
        assert_eq!(ended.status.code(), Some(2), "{}", ended.said);
        assert_eq!(lines.len(), 3, "{}", ended.said);
        for (line, place) in
            lines.iter().zip(["1:1: tabel: ", "3:9: rules[0].scope: ", "4:10: rules[0].action: "])
        {
            assert!(line.starts_with(&format!("{file}:{place}")), "{line}");
        }
    }
    before.assert_same(&world.net.gateway, &"");
    let ended = tproxy_output(&world.net.gateway, "config --scope inbound --action drop");
    assert!(ended.status.success(), "{}", ended.said);
    files.write("printed.toml", &ended.said);
    let ended =
        tproxy_output(&world.net.gateway, &format!("check {}", files.0.join("printed.toml").display()));
    assert!(ended.said.contains("nothing is wrong: rules=1"), "{}", ended.said);
}
