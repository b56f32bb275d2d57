//! Why steered packets do not arrive, as far as can be found out.

use std::fs;

use tproxy::{
    arrivals::Entrance,
    family::Family,
    host::{
        Change, Identity, OnRecord, on_record,
        policy::{self, Common, route_in},
    },
    instance::Loss,
};

use super::{Finding, firewall, limits, routing};

/// The likely reason with its cure, on one line.
pub(crate) fn reason(loss: &Loss, identity: &Identity) -> String {
    let Entrance { family, protocol, .. } = loss.entrance;
    let interface = &*loss.interface;
    missing(interface, family, identity)
        .or_else(|| firewall::obstacle(identity.mark, interface, family, protocol))
        .or_else(|| routed_elsewhere(identity, family))
        .or_else(|| (family == Family::V4).then(|| filtered(interface)).flatten())
        .unwrap_or_else(|| {
            "neither the firewall nor routing says why: tproxy doctor, and nstat -az TcpExtIPReversePathFilter, may tell more"
                .into()
        })
}

/// The rule and the route that deliver.
fn missing(interface: &str, family: Family, identity: &Identity) -> Option<String> {
    let is_rule = |change: &Change| match change {
        Change::Rule { family: of, iif } => *of == family && iif == interface,
        Change::CommonRule { family: of, rule: Common::All } => *of == family,
        Change::CommonRule { family: of, rule: Common::OnLoopback } => *of == family && interface == "lo",
        _ => false,
    };
    let rules = policy::rules().ok()?;
    if !rules.iter().filter_map(|rule| rule.change(identity)).any(|change| is_rule(&change)) {
        return Some(format!(
            "likely because the routing rule that delivers {family} from {interface} is gone (ip rule)"
        ));
    }
    let routed = route_in(identity.table).ok()?;
    routed.is_none().then(|| format!("likely because table {} has no route (ip route)", identity.table))
}

fn routed_elsewhere(identity: &Identity, family: Family) -> Option<String> {
    let known: Vec<OnRecord> = on_record().unwrap_or_default();
    let rules = policy::rules().ok()?.into_iter().filter(|rule| rule.family == family);
    let foreign: Vec<_> = rules.filter(|rule| !routing::is_on_record(rule, &known)).collect();
    let before = routing::before(&foreign, identity, |table| matches!(route_in(table), Ok(Some(_))));
    before.into_iter().find_map(|finding| said(&finding))
}

fn filtered(interface: &str) -> Option<String> {
    let filter = limits::reverse_path_filter(interface);
    let text = fs::read_to_string("/proc/thread-self/net/netstat").ok()?;
    let dropped = reverse_path_drops(&text).filter(|dropped| *dropped > 0 && filter != 0)?;
    Some(format!(
        "likely because of rp_filter, which is {filter} on {interface} and has discarded {dropped} packets so far: no route leads back to their sources; cure: ip route add …, or sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{interface}.rp_filter=0"
    ))
}

/// What the kernel has discarded since it did not come in by the interface that leads back.
fn reverse_path_drops(netstat: &str) -> Option<u64> {
    let mut rows = netstat.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (rows.next()?, rows.next()?);
    let at = names.split_whitespace().position(|name| name == "IPReversePathFilter")?;
    values.split_whitespace().nth(at)?.parse().ok()
}

fn said(finding: &Finding) -> Option<String> {
    Some(format!("likely because of {}: {}; cure: {}", finding.check, finding.found, finding.cure.as_ref()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_found_by_its_name() {
        let text = "TcpExt: A IPReversePathFilter B\nTcpExt: 1 23 4\nIpExt: C\nIpExt: 5\n";
        assert_eq!(reverse_path_drops(text), Some(23));
        assert_eq!(reverse_path_drops("TcpExt: A\nTcpExt: 1\n"), None);
    }
}
