//! Clear errors: one line that names the thing, a non-zero exit, and an untouched host.

use crate::{clean::Snapshot, support::*};

/// Arguments, and the words the one line has to have.
const ROWS: [(&str, &[&str]); 26] = [
    ("run --scope forwarded --action direct", &["--interface"]),
    ("run --scope forwarded --interface lan --to 10.0.0.0/33 --action direct", &["10.0.0.0/33"]),
    ("run --scope forwarded --interface lan --to 10.0.0.256 --action direct", &["10.0.0.256"]),
    ("run --scope forwarded --interface lan --from fd00::/129 --action direct", &["fd00::/129"]),
    ("run --scope forwarded --interface lan --except example --action direct", &["example"]),
    ("run --scope forwarded --interface lan --port 65536 --action direct", &["65536"]),
    ("run --scope forwarded --interface lan --port 90-80 --action direct", &["90-80"]),
    ("run --scope forwarded --interface lan --port http --action direct", &["http"]),
    (
        "run --scope forwarded --interface lan --from 10.1.0.0/16 --to fd00::/8 --action direct",
        &["--from", "--to"],
    ),
    (
        "run --scope forwarded --interface lan --from fd00::/8 --to 10.1.0.0/16 --action direct",
        &["--from", "--to"],
    ),
    ("run --scope forwarded --interface lan --uid 1000 --action direct", &["--uid", "forwarded"]),
    (
        "run --scope forwarded --interface lan --cgroup /sys/fs/cgroup --action direct",
        &["--cgroup", "forwarded"],
    ),
    ("run --scope inbound --uid 1000 --action direct", &["--uid", "inbound"]),
    ("run --scope inbound --interface lan --action direct", &["--interface", "inbound"]),
    ("run --scope outbound --action direct --source client", &["--source", "outbound"]),
    ("run --scope outbound --action direct --source client-port", &["--source", "outbound"]),
    ("run --scope outbound --cgroup container:0123 --action direct", &["container:0123", "12"]),
    ("run --scope outbound --action upstream=nowhere", &["nowhere"]),
    ("run --scope outbound --action explode", &["explode"]),
    ("run --scope sideways --action direct", &["sideways"]),
    ("run --scope outbound --action direct --mark 0x1/0x1", &["0x1"]),
    ("run --scope forwarded --interface lan --action direct --connect-timeout soon", &["soon"]),
    ("send --from 8.8.8.8:8080 --to [fd00:1::2]:9999 x", &["8.8.8.8:8080", "[fd00:1::2]:9999"]),
    ("send --from 8.8.8.8:0 --to 10.1.0.2:9999 x", &["--from", "8.8.8.8:0"]),
    ("send --from 8.8.8.8 --to 10.1.0.2:9999 x", &["8.8.8.8"]),
    ("send --from 8.8.8.8:8080 --to 255.255.255.255:9999 x", &["255.255.255.255:9999"]),
];

#[test]
fn a_mistake_is_named_in_one_line_and_changes_nothing() {
    let world = Topology::three().unwrap();
    let before = Snapshot::take(&world.gateway);
    for (args, words) in ROWS {
        assert_refused(&world.gateway, "", args, words);
    }
    before.assert_same(&world.gateway, &"");
}

#[test]
fn a_missing_capability_is_named() {
    let world = Topology::three().unwrap();
    let before = Snapshot::take(&world.gateway);
    let run = "run --scope forwarded --interface lan --action direct";
    for (gone, name) in [("-net_admin", "CAP_NET_ADMIN"), ("-bpf,-sys_admin", "CAP_BPF"), ("-all", "CAP_")] {
        let wrapper = format!("setpriv --bounding-set {gone} --inh-caps {gone} --");
        assert_refused(&world.gateway, &wrapper, run, &[name]);
    }
    before.assert_same(&world.gateway, &"");
}

#[test]
fn a_mark_or_table_or_priority_that_others_use_is_refused() {
    let run = "run --scope forwarded --interface lan --action direct --mark 0x100000/0x300000 --table 4711";
    for (setup, word) in [
        ("rule add fwmark 0x100000/0x300000 lookup 99 priority 5000", "0x100000"),
        ("rule add fwmark 0x100000 lookup 99 priority 5000", "0x100000"),
        ("-6 rule add fwmark 0x300000/0x300000 lookup 99 priority 5000", "0x100000"),
        ("route add 192.0.2.0/24 dev wan table 4711", "4711"),
        ("-6 route add 2001:db8::/32 dev wan table 4711", "4711"),
    ] {
        let world = Topology::three().unwrap();
        world.gateway.run(&format!("ip {setup}")).unwrap();
        let before = Snapshot::take(&world.gateway);
        assert_refused(&world.gateway, "", run, &[word]);
        before.assert_same(&world.gateway, &setup);
    }
}

#[track_caller]
fn assert_refused(namespace: &Namespace, wrapper: &str, args: &str, words: &[&str]) {
    let line = format!("{wrapper} {} {args}", binary().display());
    let mut proc = namespace.start(&line).unwrap_or_else(|error| panic!("{error}"));
    let status = proc.wait(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    let said = proc.lines().into_iter().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>();
    assert!(status.code().is_some_and(|code| code != 0), "{args}: {status}\n{said:#?}");
    assert_eq!(said.len(), 1, "{args}: not one line\n{said:#?}");
    for word in words {
        assert!(said[0].contains(word), "{args}: '{word}' is not named in: {}", said[0]);
    }
}
