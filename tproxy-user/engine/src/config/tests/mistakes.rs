//! What is said about mistakes.

use super::*;

/// A rule that is fine, on lines 1 to 3.
const RULE: &str = "[[rules]]\nscope = \"outbound\"\naction = \"direct\"\n";

/// What comes after the rule, where the mistake is, and words of the remedy.
const IN_A_RULE: &[(&str, &str, &str)] = &[
    ("prots = [80]", "4:1: rules[0].prots: ", "did you mean ports?"),
    ("colour = 'red'", "4:1: rules[0].colour: ", "those that are: name, scope, protocol"),
    ("name = 5", "4:8: rules[0].name: 5: ", "write a text in quotes"),
    ("name = ''", "4:8: rules[0].name: ", "1 to 64 bytes"),
    ("name = \"a\\nb\"", "4:8: rules[0].name: ", "printable"),
    ("protocol = 'icmp'", "4:12: rules[0].protocol: 'icmp': ", "write tcp, udp, both"),
    ("protocol = 'upd'", "4:12: rules[0].protocol: 'upd': ", "did you mean udp?"),
    ("interfaces = 'eth0'", "4:14: rules[0].interfaces: ", "write ['eth0']"),
    ("interfaces = ['']", "4:14: rules[0].interfaces: ", "ip link"),
    ("interfaces = ['a b']", "4:14: rules[0].interfaces: ", "ip link"),
    ("interfaces = ['sixteen-bytes-it']", "4:14: rules[0].interfaces: ", "15 bytes"),
    ("to = ['10.0.0.1/8']", "4:7: rules[0].to[0]: '10.0.0.1/8': ", "did you mean 10.0.0.0/8?"),
    ("to = ['::/0', 'example.org']", "4:15: rules[0].to[1]: 'example.org': ", "write an address or a prefix"),
    ("from = [10]", "4:9: rules[0].from[0]: 10: ", "write an address or a prefix"),
    ("except = { a = 1 }", "4:10: rules[0].except: ", "a list in brackets"),
    ("to = ['@corp']", "4:7: rules[0].to[0]: ", "no set \"corp\""),
    ("from = ['10.0.0.0/8']\nto = ['::/0']", "5:6: rules[0].to: ", "give both in IPv4"),
    ("ports = [0]", "4:10: rules[0].ports[0]: 0: ", "8000-8999"),
    ("ports = [-1]", "4:10: rules[0].ports[0]: -1: ", "8000-8999"),
    ("ports = [99999999999999999999]", "4:10: rules[0].ports[0]: ", "8000-8999"),
    ("ports = ['90-80']", "4:10: rules[0].ports[0]: '90-80': ", "did you mean 80-90?"),
    ("ports = ['http']", "4:10: rules[0].ports[0]: 'http': ", "443 or 8000-8999"),
    ("ports = '80,443'", "4:9: rules[0].ports: ", "write ['80,443']"),
    ("uid = ['root']", "4:8: rules[0].uid[0]: 'root': ", "a whole number"),
    ("uid = [-1]", "4:8: rules[0].uid[0]: -1: ", "from 0 to 4294967295"),
    ("source = 'client'", "4:10: rules[0].source: ", "leave it out"),
    ("source = 'klient'", "4:10: rules[0].source: 'klient': ", "did you mean client?"),
    ("nat = 'per-destination'\nprotocol = 'tcp'", "4:7: rules[0].nat: ", "protocol = \"udp\""),
    ("nat = 'full'", "4:7: rules[0].nat: 'full': ", "per-destination"),
    ("nat = 7", "4:7: rules[0].nat: 7: ", "a text in quotes"),
    ("timeouts = '5s'", "4:12: rules[0].timeouts: '5s': ", "write a table"),
    ("timeouts.idle = 5", "4:17: rules[0].timeouts.idle: 5: ", "10s"),
    ("timeouts.idle = '0s'", "4:17: rules[0].timeouts.idle: '0s': ", "10s"),
    ("timeouts.idle = '400d'", "4:17: rules[0].timeouts.idle: '400d': ", "at most 365d"),
    ("timeouts.drain = '5s'", "4:10: rules[0].timeouts.drain: ", "connect, idle"),
    ("timeouts.idle = '5s'\nprotocol = 'udp'", "4:17: rules[0].timeouts.idle: ", "TCP"),
    ("limits.connections = 0", "4:22: rules[0].limits.connections: 0: ", "from 1 on"),
    ("limits.connections = -1", "4:22: rules[0].limits.connections: -1: ", "from 1 on"),
    ("limits.connections = 1.5", "4:22: rules[0].limits.connections: 1.5: ", "from 1 on"),
    ("limits.connections = 1\nprotocol = 'udp'", "4:22: rules[0].limits.connections: ", "TCP"),
];

/// A whole file, where the mistake is, and words of the remedy.
const FILES: &[(&str, &str, &str)] = &[
    ("", "1:1: rules: ", "write [[rules]]"),
    ("rules = 5", "1:9: rules: ", "a list"),
    ("rules = ['a']", "1:10: rules[0]: 'a': ", "a table"),
    ("[[rules]]\naction = 'drop'", "1:1: rules[0].scope: ", "forwarded, outbound or inbound"),
    ("[[rules]]\nscope = 'inbound'", "1:1: rules[0].action: ", "respond=TEXT"),
    (
        "[[rules]]\nscope = 'inbond'\naction = 'drop'",
        "2:9: rules[0].scope: 'inbond': ",
        "did you mean inbound?",
    ),
    ("[[rules]]\nscope = 'inbound'\naction = 'dorp'", "3:10: rules[0].action: 'dorp': ", "drop or pass"),
    ("[[rules]]\nscope = 'inbound'\naction = 'upstream=x'", "3:10: rules[0].action: ", "upstream=ADDR:PORT"),
    (
        "[[rules]]\nscope = 'inbound'\naction = 'upstream=socks4://10.0.0.1:1080'",
        "3:10: rules[0].action: ",
        "SOCKS4",
    ),
    (
        "[[rules]]\nscope = 'inbound'\naction = 'upstream=socks5://10.0.0.1:1080'",
        "1:1: rules[0].protocol: ",
        "protocol = \"tcp\"",
    ),
    (
        "[[rules]]\nscope = 'inbound'\naction = 'upstream=@corp'",
        "3:10: rules[0].action: ",
        "[upstreams.corp]: write",
    ),
    (
        "[upstreams.corp]\nservers = ['tcp://10.0.0.1:1']\n[[rules]]\nscope = 'inbound'\naction = 'upstream=@crop'",
        "5:10: rules[0].action: ",
        "did you mean @corp?",
    ),
    (
        "[upstreams.corp]\nservers = []\n[[rules]]\nscope = 'inbound'\naction = 'drop'",
        "2:11: upstreams.corp.servers: ",
        "at least one",
    ),
    (
        "[upstreams.corp]\nservers = ['tcp://10.0.0.1:1', 'tcp://10.0.0.1:1']\n[[rules]]\nscope = 'inbound'\naction = 'drop'",
        "2:32: upstreams.corp.servers[1]: ",
        "twice",
    ),
    (
        "[upstreams.corp]\nservers = ['socks5://me:secret@10.0.0.1:1']\n[[rules]]\nscope = 'inbound'\naction = 'drop'",
        "2:12: upstreams.corp.servers[0]: ",
        "credentials = ",
    ),
    (
        "[upstreams.corp]\nservers = ['tcp://10.0.0.1:1']\npick = 'last'\n[[rules]]\nscope = 'inbound'\naction = 'drop'",
        "3:8: upstreams.corp.pick: ",
        "round-robin",
    ),
    (
        "[upstreams.corp]\nservers = ['tcp://10.0.0.1:1']\ncheck = { every = '1ms' }\n[[rules]]\nscope = 'inbound'\naction = 'drop'",
        "3:19: upstreams.corp.check.every: ",
        "100ms",
    ),
    (
        "[upstreams.corp]\nservers = ['socks5://10.0.0.1:1']\ncredentials = { file = '/nowhere' }\n[[rules]]\nscope = 'inbound'\naction = 'drop'",
        "3:24: upstreams.corp.credentials.file: ",
        "/nowhere: ",
    ),
    ("[[rules]]\nscope = 'forwarded'\naction = 'drop'", "2:9: rules[0].scope: ", "needs interfaces"),
    (
        "[[rules]]\nscope = 'inbound'\naction = 'direct'\nsource = 'client-port'",
        "4:10: rules[0].source: ",
        "use source = \"client\"",
    ),
    (
        "[[rules]]\nscope = 'inbound'\naction = 'drop'\nuid = [0]",
        "4:7: rules[0].uid: ",
        "scope = \"outbound\"",
    ),
    ("[[rules]]\nscope = 'inbound'\naction = 'drop'\ncgroup = ['a']", "4:10: rules[0].cgroup: ", "outbound"),
    ("[[rules]]\nscope = 'inbound'\naction = 'drop'\nsource = 'client'", "4:10: rules[0].source: ", "direct"),
    (
        "[[rules]]\nscope = 'outbound'\naction = 'drop'\negress.mark = '1/1'",
        "4:15: rules[0].egress.mark: ",
        "relays nothing",
    ),
    (
        "[[rules]]\nscope = 'inbound'\naction = 'direct'\negress.interface = 'wan'",
        "4:20: rules[0].egress.interface: ",
        "scopes forwarded and outbound",
    ),
    (
        "[[rules]]\nscope = 'outbound'\naction = 'direct'\negress = { mark = '0x10000000/0x10000000' }",
        "4:19: rules[0].egress.mark: ",
        "use others",
    ),
    (
        "[[rules]]\nscope = 'outbound'\naction = 'direct'\negress = { mark = '1' }",
        "4:19: rules[0].egress.mark: '1': ",
        "VALUE/MASK",
    ),
    (
        "[[rules]]\nscope = 'outbound'\naction = 'direct'\negress = { interface = 'a b' }",
        "4:24: rules[0].egress.interface: ",
        "ip link",
    ),
    (
        "[[rules]]\nscope = 'outbound'\naction = 'direct'\nto = ['::/0']\negress = { source = '10.0.0.9' }",
        "5:21: rules[0].egress.source: ",
        "another address family",
    ),
    (
        "[[rules]]\nscope = 'forwarded'\ninterfaces = ['lan']\naction = 'direct'\nsource = 'client'\negress.source = '10.0.0.9'",
        "6:17: rules[0].egress.source: ",
        "leave one of them out",
    ),
    ("[[rules]]\nscope = 'inbound'\naction = 'drop'\ntimeouts.idle = '1s'", "4:17: rules[0].timeouts", "TCP"),
    (
        "[[rules]]\nscope = 'inbound'\naction = 'upstream=[2001:db8::1]:1'\nsource = 'client'\nto = ['0.0.0.0/0']",
        "3:10: rules[0].action: ",
        "in the same one",
    ),
    (
        "[[rules]]\nscope = 'inbound'\naction = 'upstream=127.0.0.1:1'\nsource = 'client'\nto = ['0.0.0.0/0']",
        "3:10: rules[0].action: ",
        "listen at another address",
    ),
];

/// Above the rule, where the mistake is, and words of the remedy.
const ABOVE: &[(&str, &str, &str)] = &[
    ("table = 254", "1:9: table: ", "choose another number"),
    ("tabel = 7", "1:1: tabel: ", "did you mean table?"),
    ("priority = 0", "1:12: priority: ", "between 1 and 32765"),
    ("name = 'a/b'", "1:8: name: 'a/b': ", "letters"),
    ("metrics = '9464'", "1:11: metrics: '9464': ", "127.0.0.1:9464"),
    ("mark = '1/1'", "1:8: mark: '1/1': ", "leave one clear"),
    ("mark = 1", "1:8: mark: 1: ", "VALUE/MASK"),
    ("steer = 'sk'", "1:9: steer: 'sk': ", "sk_lookup, sk_assign"),
    ("workers = 0", "1:11: workers: ", "between 1 and 1024"),
    ("admit = 'yes'", "1:9: admit: 'yes': ", "true or false"),
    ("name = 1979-05-27", "1:8: name: 1979-05-27: ", "a name"),
    ("table = 0x100000000", "1:9: table: 0x100000000: ", "from 0 to 4294967295"),
    ("workers = 'all'", "1:11: workers: 'all': ", "a whole number"),
    ("timeouts.idle = 5", "1:17: timeouts.idle: 5: ", "10s"),
    ("limits.udp_sessions = 0", "1:23: limits.udp_sessions: ", "at least 1"),
    ("[sets.prefix]", "1:7: sets.prefix: ", "did you mean prefixes?"),
    ("[sets.prefixes]\na = 5", "2:5: sets.prefixes.a: 5: ", "a list in brackets, or { file"),
    ("[sets.prefixes]\na = ['::/0', '@b']", "2:14: sets.prefixes.a[1]: ", "write the members of b"),
    ("[sets.prefixes]\na = { file = 5 }", "2:14: sets.prefixes.a.file: 5: ", "a text in quotes"),
    ("[sets.prefixes]\na = { fiel = 'x' }", "2:7: sets.prefixes.a.fiel: ", "file"),
    ("[sets.prefixes]\na = {}", "2:5: sets.prefixes.a: {}: ", "file = …"),
    ("[sets.prefixes]\na = { file = 'no/such' }", "2:14: sets.prefixes.a.file: no/such ", "relative to"),
    ("[sets.prefixes]\na = { file = '/dev/zero' }", "2:14: sets.prefixes.a.file: /dev/zero ", "regular"),
    ("[sets.ports]\n'a.b' = [0]", "2:10: sets.ports.\"a.b\"[0]: 0: ", "8000-8999"),
    ("a = ", "1:5: ", "not TOML"),
    ("[sets]\n[sets]", "2:2: ", "not TOML"),
];

fn the_only_line(text: &str) -> String {
    let errors = read(text).expect_err(text);
    let lines: Vec<_> = errors.lines().collect();
    assert_eq!(lines.len(), 1, "{text}\n{errors}");
    lines.into_iter().next().unwrap()
}

#[test]
fn each_is_named_with_its_place_and_a_remedy() {
    let whole = |rows: &[(&str, &'static str, &'static str)], make: &dyn Fn(&str) -> String| {
        rows.iter().map(|(text, place, remedy)| (make(text), *place, *remedy)).collect::<Vec<_>>()
    };
    let rows = whole(IN_A_RULE, &|text| format!("{RULE}{text}"))
        .into_iter()
        .chain(whole(FILES, &str::to_owned))
        .chain(whole(ABOVE, &|text| format!("{text}\n{RULE}")));
    for (text, place, remedy) in rows {
        let line = the_only_line(&text);
        let place = format!("{FILE}:{place}");
        assert!(line.starts_with(&place) && line.contains(remedy), "{text}\n{line}\n{place} … {remedy}");
    }
}

#[test]
fn all_are_named_at_once() {
    let text = r#"
tabel = 7
table = 254
[timeouts]
idle = 5
drain = "soon"
[sets.prefixes]
corp = ["10.0.0.0/8", "10.0.0.1/8", 7]
[[rules]]
name = "one"
scope = "sideways"
interfaces = "eth1"
to = ["@corp", "@crop"]
action = "drop"
source = "client"
[[rules]]
name = "one"
scope = "inbound"
uid = ["root"]
action = "direct"
interface = "a"
interfaces = ["b"]
[[rules]]
"#;
    let errors = read(text).unwrap_err();
    let places: Vec<_> = errors.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    let expected = [
        "2:1", "3:9", "5:8", "6:9", "8:23", "8:37", "11:9", "12:14", "13:16", "15:10", "17:8", "19:8",
        "21:1", "22:14", "23:1", "23:1",
    ];
    assert_eq!(places, expected.map(|place| format!("{FILE}:{place}:")), "{errors}");
}

#[test]
fn a_mistake_in_the_file_of_a_set_is_named_there() {
    let directory = Directory::new();
    let nets = directory.write("nets", "10.0.0.0/8\n  10.0.0.1/8 # no\nx\n\u{fffd}\n");
    let file = directory.write(FILE, format!("[sets.prefixes]\na = {{ file = 'nets' }}\n{RULE}to = ['@a']"));
    let errors = load(&file).unwrap_err();
    let places: Vec<_> = errors.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(places, ["2:3", "3:1", "4:1"].map(|place| format!("{}:{place}:", nets.display())), "{errors}");
    assert!(errors.to_string().contains("did you mean 10.0.0.0/8?"), "{errors}");
}

#[test]
fn what_is_not_text_is_refused_where_it_begins() {
    let errors = parse(FILE.as_ref(), b"table = 7\nmark = '\xff'").unwrap_err().to_string();
    assert!(errors.starts_with("tproxy.toml:2:9: ") && errors.contains("UTF-8"), "{errors}");
    let errors = load("/no/such/file".as_ref()).unwrap_err().to_string();
    assert!(errors.starts_with("/no/such/file: ") && errors.contains("name a file"), "{errors}");
}

#[test]
fn more_lines_than_anybody_reads_are_counted() {
    let text = format!("{RULE}ports = [{}]", "0, ".repeat(130)) + &"\n[[rules]]\n".repeat(30);
    let errors = read(&text).unwrap_err();
    assert_eq!(errors.lines().count(), 101, "{errors}");
    assert_eq!(errors.lines().last().unwrap(), "and 60 more");
    assert!(!errors.to_string().contains("rules[0].scope"), "{errors}");
}

#[test]
fn what_the_tables_cannot_hold_is_refused() {
    let rules = "[[rules]]\nscope = 'outbound'\naction = 'drop'\n".repeat(4097);
    assert!(the_only_line(&rules).contains("the tables hold 4096"));
    let nets = (0..=check::MOST_PREFIXES as u32)
        .map(|index| format!("'{}',", std::net::Ipv4Addr::from(index)))
        .collect::<String>();
    let line = the_only_line(&format!("[sets.prefixes]\na = [{nets}]\n{RULE}to = ['@a']"));
    assert!(line.contains("to and except hold 131069 different prefixes"), "{line}");
    let uids = (0..8193).map(|uid| format!("{uid},")).collect::<String>();
    assert!(the_only_line(&format!("{RULE}uid = [{uids}]")).contains("8193 different user ids"));
}
