//! Programs of others at the tc hooks.

use tproxy::{
    datapath::support::{AttachedProgram, attached, lacks_egress},
    host::{Direction, links},
};

use super::Finding;

pub(super) const CHECK: &str = "tc";

pub(super) fn examine() -> Vec<Finding> {
    let links = match links::snapshot() {
        Ok(links) => links,
        Err(error) => return vec![Finding::unknown(CHECK, &error)],
    };
    let mut findings = Vec::new();
    for link in links {
        if lacks_egress(&link) {
            findings.push(without_egress(&link.name));
        }
        for hook in [Direction::Ingress, Direction::Egress] {
            findings.extend(before_ours(&attached(&link.name, hook), &link.name, hook));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "no program of others comes before ours"));
    }
    findings
}

/// As policing and `ifb` shaping have it, where the kernel has no tcx.
fn without_egress(interface: &str) -> Finding {
    Finding::warn(
        CHECK,
        format!(
            "{interface} has a qdisc `ingress`, and with it Linux before 6.6 shows no program the packets that leave"
        ),
        "tproxy does not start where a rule needs those: scope outbound, UDP, source = \"client\"",
        format!(
            "make it a clsact, with the same filters (tc qdisc del dev {interface} ingress; tc qdisc add dev {interface} clsact), or boot Linux 6.6"
        ),
    )
}

/// Ours are attached behind those that are there.
fn before_ours(programs: &[AttachedProgram], interface: &str, hook: Direction) -> Option<Finding> {
    let before: Vec<_> = programs.iter().take_while(|program| !program.is_ours()).collect();
    let first = before.first()?;
    let names: Vec<_> =
        before.iter().map(|program| format!("{} (id {})", program.name, program.id)).collect();
    Some(Finding::warn(
        CHECK,
        format!("before ours at {hook} of {interface}: {}", names.join(", ")),
        "ours sees a packet only if they answer TCX_NEXT (-1); what they accept, drop or redirect is not intercepted",
        format!(
            "bpftool prog show id {} (whose is it?), and have its owner attach it after tproxy",
            first.id
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_before_ours_are_named() {
        let program = |id, name: &str| AttachedProgram { id, name: name.into() };
        let programs = [program(1, "cil_from_netdev"), program(2, "tproxy_ingress"), program(3, "later")];
        let finding = before_ours(&programs, "eth0", Direction::Ingress).unwrap();
        assert!(finding.found.ends_with("ingress of eth0: cil_from_netdev (id 1)"), "{finding}");
        assert_eq!(before_ours(&programs[1..], "eth0", Direction::Ingress), None);
        assert_eq!(before_ours(&[], "eth0", Direction::Ingress), None);
    }
}
