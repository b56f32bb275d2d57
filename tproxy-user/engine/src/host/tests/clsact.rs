//! tc filters and the qdisc that they hang in. The datapath's part, adding a filter, is done by `tc` here.

use super::*;
use crate::host::clsact;

fn second() -> Identity {
    Identity { mark: "0x40000000/0xc0000000".parse().unwrap(), table: 2223, priority: 223 }
}

fn filter(direction: Direction) -> Change {
    Change::TcFilter { interface: "lo".into(), index: 1, direction }
}

/// A filter that does nothing, at `lo`.
fn attach(direction: Direction, priority: u16, handle: u32) {
    let line = format!("filter add dev lo {direction} pref {priority} handle {handle:#x} bpf bytecode");
    let added = Command::new("tc").args(line.split(' ')).arg("1,6 0 0 0").status().unwrap();
    assert!(added.success(), "{line}");
}

/// What the datapath attaches for an instance.
fn attach_ours(direction: Direction, identity: Identity) {
    attach(direction, clsact::PRIORITY, clsact::handle(identity.mark));
}

fn tc() -> [String; 3] {
    ["tc qdisc show dev lo", "tc filter show dev lo ingress", "tc filter show dev lo egress"].map(run)
}

#[test]
fn filters_are_removed_and_their_qdisc_with_them() {
    in_namespace(|| {
        let root = Root::new();
        let before = tc();
        let mut journal = root.begin().unwrap();
        for direction in [Direction::Ingress, Direction::Egress] {
            journal.apply(filter(direction)).unwrap();
            attach_ours(direction, IDENTITY);
        }
        journal.revert(&filter(Direction::Ingress)).unwrap();
        let [_, ingress, egress] = tc();
        assert_eq!(ingress, "");
        assert!(egress.contains("handle 0x20000000"), "{egress}");
        journal.undo().unwrap();
        assert_eq!(tc(), before);
    });
}

#[test]
fn a_qdisc_that_was_there_stays() {
    in_namespace(|| {
        let root = Root::new();
        run("tc qdisc add dev lo clsact");
        let before = tc();
        let mut journal = root.begin().unwrap();
        journal.apply(filter(Direction::Ingress)).unwrap();
        attach_ours(Direction::Ingress, IDENTITY);
        journal.undo().unwrap();
        assert_eq!(tc(), before);
    });
}

#[test]
fn a_qdisc_that_somebody_uses_meanwhile_stays() {
    in_namespace(|| {
        let root = Root::new();
        let mut journal = root.begin().unwrap();
        journal.apply(filter(Direction::Ingress)).unwrap();
        attach(Direction::Egress, 1, 1);
        let before = tc();
        attach_ours(Direction::Ingress, IDENTITY);
        journal.undo().unwrap();
        assert_eq!(tc(), before);
    });
}

#[test]
fn the_last_instance_to_leave_removes_the_qdisc() {
    in_namespace(|| {
        let root = Root::new();
        let before = tc();
        let mut first = root.begin().unwrap();
        let mut second = Journal::begin_in(&root.0, second()).unwrap();
        first.apply(filter(Direction::Ingress)).unwrap();
        second.apply(filter(Direction::Ingress)).unwrap();
        attach_ours(Direction::Ingress, IDENTITY);
        // The second has not attached yet, and must find the qdisc when it does.
        first.undo().unwrap();
        attach_ours(Direction::Ingress, self::second());
        second.undo().unwrap();
        assert_eq!(tc(), before);
    });
}

#[test]
fn an_interface_that_is_gone_took_them_along() {
    in_namespace(|| {
        let root = Root::new();
        run("ip link add gone0 index 77 type veth peer name gone1");
        let mut journal = root.begin().unwrap();
        let filter = Change::TcFilter { interface: "gone0".into(), index: 77, direction: Direction::Ingress };
        journal.apply(filter.clone()).unwrap();
        assert!(run("tc qdisc show dev gone0").contains("clsact"));
        run("ip link del gone0");
        journal.revert(&filter).unwrap();
        journal.apply(filter).unwrap();
        journal.undo().unwrap();
    });
}
