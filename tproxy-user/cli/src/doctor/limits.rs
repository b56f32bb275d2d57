//! What the process may do, and sysctls.

use std::fs;

use rustix::process::{Resource, getrlimit};
use tproxy::{
    family::Family,
    host::{links, local_table::LOOPBACK, preflight, sysctl::Sysctl},
};

use super::Finding;

/// Two for each connection.
const FEW_DESCRIPTORS: u64 = 65_536;
const SMALL_BACKLOG: u64 = 1024;
const FEW_PORTS: u64 = 16_384;

pub(super) const CAPABILITIES: &str = "capabilities";

pub(super) fn examine() -> Vec<Finding> {
    let mut findings = vec![capabilities(), descriptors(), loopback(), ipv6()];
    findings.extend(Family::BOTH.map(forwarding));
    findings.extend([backlog(), ports(), jit(), reverse_path()]);
    findings
}

fn capabilities() -> Finding {
    match preflight::missing_capabilities() {
        Ok(missing) if missing.is_empty() => Finding::ok(CAPABILITIES, "all that tproxy needs"),
        Ok(missing) => Finding::fail(
            CAPABILITIES,
            format!("missing: {}", missing.join(", ")),
            "tproxy does not start",
            "sudo tproxy …, or: setcap cap_net_admin,cap_net_raw,cap_net_bind_service,cap_bpf,cap_perfmon+ep $(command -v tproxy)",
        ),
        Err(error) => Finding::unknown(CAPABILITIES, &error),
    }
}

fn descriptors() -> Finding {
    const CHECK: &str = "descriptors";
    let Some(most) = getrlimit(Resource::Nofile).maximum else {
        return Finding::ok(CHECK, "no limit");
    };
    let found = format!("at most {most} open files (ulimit -Hn), so about {} connections", most / 2);
    if most >= FEW_DESCRIPTORS {
        return Finding::ok(CHECK, found);
    }
    Finding::warn(
        CHECK,
        found,
        "connections beyond that wait until others end",
        "ulimit -n 1048576 before tproxy, or LimitNOFILE=1048576 in its systemd unit",
    )
}

fn loopback() -> Finding {
    const CHECK: &str = "lo";
    match links::snapshot() {
        Ok(links) if links.iter().any(|link| link.index == LOOPBACK && link.up) => Finding::ok(CHECK, "up"),
        Ok(_) => {
            Finding::fail(CHECK, "down", "steered packets are delivered through it", "ip link set lo up")
        }
        Err(error) => Finding::unknown(CHECK, &error),
    }
}

/// Not having it is nobody's mistake, but rules for it take nothing.
fn ipv6() -> Finding {
    const CHECK: &str = "IPv6";
    let is_v6 = |family| family == Family::V6;
    let found = if !Family::supported().any(is_v6) {
        "off: the kernel has none (ipv6.disable=1, or built without), and IPv4 alone is intercepted"
    } else if !Family::available().any(is_v6) {
        "off: net.ipv6.conf.lo.disable_ipv6 is 1, and IPv4 alone is intercepted"
    } else {
        "on"
    };
    Finding::ok(CHECK, found)
}

fn forwarding(family: Family) -> Finding {
    let (check, path, key) = match family {
        Family::V4 => ("forwarding 4", "net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        Family::V6 => ("forwarding 6", "net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
    };
    match value(path).as_deref() {
        Some("0") => Finding::warn(
            check,
            format!("{key} is 0"),
            format!(
                "scope forwarded: {family} flows that no rule takes are not forwarded, and neither are their errors"
            ),
            format!("sysctl -w {key}=1"),
        ),
        Some(value) => Finding::ok(check, format!("{key} is {value}")),
        None => Finding::ok(check, format!("no {family} here")),
    }
}

fn backlog() -> Finding {
    const CHECK: &str = "backlog";
    match number("net/core/somaxconn") {
        Some(few) if few < SMALL_BACKLOG => Finding::warn(
            CHECK,
            format!("net.core.somaxconn is {few}"),
            "of more new connections than that at once, the rest have to send their SYN again",
            "sysctl -w net.core.somaxconn=4096",
        ),
        Some(enough) => Finding::ok(CHECK, format!("net.core.somaxconn is {enough}")),
        None => Finding::unknown(CHECK, &"no net.core.somaxconn"),
    }
}

fn ports() -> Finding {
    const CHECK: &str = "ports";
    let range = value("net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = range.split_whitespace().map(str::parse::<u64>);
    let (Some(Ok(first)), Some(Ok(last))) = (bounds.next(), bounds.next()) else {
        return Finding::unknown(CHECK, &"no net.ipv4.ip_local_port_range");
    };
    let found = format!("net.ipv4.ip_local_port_range is {first} {last}");
    if last.saturating_sub(first) >= FEW_PORTS {
        return Finding::ok(CHECK, found);
    }
    Finding::warn(
        CHECK,
        found,
        "no more connections than that to one and the same upstream address and port",
        "sysctl -w net.ipv4.ip_local_port_range='10240 65535'",
    )
}

fn jit() -> Finding {
    const CHECK: &str = "jit";
    match number("net/core/bpf_jit_enable") {
        Some(0) => Finding::warn(
            CHECK,
            "net.core.bpf_jit_enable is 0",
            "eBPF programs are interpreted, at several times the cost",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(_) => Finding::ok(CHECK, "eBPF programs are compiled"),
        None => Finding::ok(CHECK, "net.core.bpf_jit_enable is another namespace's to see"),
    }
}

/// Strict filtering drops what comes in by an interface that its source is not routed to. Steering itself gets along with
/// it, but the replies to a spoofed upstream socket may come by another interface than packets to the client leave by.
fn reverse_path() -> Finding {
    const CHECK: &str = "rp_filter";
    let links = match links::snapshot() {
        Ok(links) => links,
        Err(error) => return Finding::unknown(CHECK, &error),
    };
    let strict: Vec<_> = links
        .iter()
        .filter(|link| link.index != LOOPBACK)
        .filter(|link| reverse_path_filter(&link.name) == STRICT)
        .map(|link| link.name.as_str())
        .collect();
    let [first, ..] = strict[..] else { return Finding::ok(CHECK, "not strict on any interface") };
    let default = fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
    let ways = default.lines().filter(|line| line.split_whitespace().nth(1) == Some("00000000")).count();
    let found = format!("strict on {}", strict.join(", "));
    if ways < 2 {
        return Finding::ok(
            CHECK,
            format!("{found}; there is but one way out, and steering gets along with it"),
        );
    }
    Finding::warn(
        CHECK,
        format!("{found}, and there are {ways} default routes"),
        "packets that come in by an interface that their source is not routed to are dropped before any socket sees them",
        format!("sysctl -w net.ipv4.conf.all.rp_filter=0 net/ipv4/conf/{first}/rp_filter=2"),
    )
}

/// Of the `rp_filter` of an interface.
const STRICT: u64 = 1;

/// What holds for an interface: the larger of its own and everybody's.
pub(super) fn reverse_path_filter(interface: &str) -> u64 {
    let own = Sysctl::new(interface, Family::V4, "rp_filter").and_then(|sysctl| sysctl.read());
    let everywhere = number("net/ipv4/conf/all/rp_filter").unwrap_or(0);
    own.ok().and_then(|text| text.parse().ok()).unwrap_or(0).max(everywhere)
}

fn number(path: &str) -> Option<u64> {
    value(path)?.parse().ok()
}

fn value(path: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/{path}")).ok().map(|text| text.trim().to_owned())
}
