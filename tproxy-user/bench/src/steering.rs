//! Rule sets of iptables and nft, as an expert would write them.
//!
//! Packets of connections that a transparent socket has are recognised first, so that only a SYN sees the rules.
//! `! --syn` keeps TIME_WAIT sockets from catching the SYN of a client that takes its port again, which would cost a
//! second.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use tproxy_netns::{Error, Namespace};

/// Ports that the workloads use: echo and datagrams, HTTP, iperf3.
pub(super) const PORTS: &str = "7,80,5201";
/// The first of them.
pub(super) const ECHO: u16 = 7;
/// A port that no workload uses.
pub(super) const OTHER_PORT: &str = "9";

/// Which connections are to be intercepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    /// One rule, which the workloads' connections match.
    One,
    /// The same as the last of as many rules.
    LastOf(usize),
    /// The same as the last of 4,096, which have 100,000 prefixes.
    Prefixes,
    /// One rule, which no connection of the workloads matches.
    Other,
}

impl Rules {
    pub(super) const fn ports(self) -> &'static str {
        match self {
            Self::One | Self::LastOf(_) | Self::Prefixes => PORTS,
            Self::Other => OTHER_PORT,
        }
    }

    /// How many rules stand before the one that counts.
    pub(super) const fn fillers(self) -> usize {
        match self {
            Self::One | Self::Other => 0,
            Self::LastOf(number) => number - 1,
            Self::Prefixes => 4_095,
        }
    }

    /// How many prefixes those have, beside one each.
    pub(super) const fn prefixes(self) -> u32 {
        match self {
            Self::Prefixes => 100_000,
            _ => 0,
        }
    }
}

/// Destination and port of filler number `index`: addresses that nobody connects to (RFC 2544), 64 ports for each.
/// A rule with a destination *and* a port of its own each would be more sets than the datapath's tables hold.
#[must_use]
pub fn filler(index: usize) -> (String, u16) {
    (format!("198.18.{}.0/24", index / FILLERS_EACH), 20_000 + (index % FILLERS_EACH) as u16)
}

/// Fillers that have a destination in common.
pub(super) const FILLERS_EACH: usize = 64;

/// The ports of listeners, one of each a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Listeners {
    /// Number N gets what CPU N sees.
    pub(super) tcp: Vec<u16>,
    /// Each gets the clients in its part of the ports: all that one of them sends has to meet the same worker.
    pub(super) udp: Vec<u16>,
}

/// Loads the rules of iptables into a gateway.
///
/// # Errors
/// Whatever iptables or ip refuse.
pub(super) fn load_iptables(gateway: &Namespace, rules: Rules, listeners: &Listeners) -> Result<(), Error> {
    gateway.feed("iptables-restore", &iptables(rules, listeners))?;
    deliver_marked(gateway)
}

/// The same for nft.
///
/// # Errors
/// Whatever nft or ip refuse.
pub(super) fn load_nft(gateway: &Namespace, rules: Rules, listeners: &Listeners) -> Result<(), Error> {
    gateway.feed("nft -f -", &nft(rules, listeners))?;
    deliver_marked(gateway)
}

fn deliver_marked(gateway: &Namespace) -> Result<(), Error> {
    gateway.ip("rule add fwmark 1 lookup 100\nroute add local default dev lo table 100").map(drop)
}

fn iptables(rules: Rules, listeners: &Listeners) -> String {
    let mut text = String::from(
        "*mangle\n:DIVERT - [0:0]\n:RULES - [0:0]\n:STEER - [0:0]\n\
         -A DIVERT -j MARK --set-mark 1\n-A DIVERT -j ACCEPT\n\
         -A PREROUTING -p tcp ! --syn -m socket --transparent -j DIVERT\n\
         -A PREROUTING -p udp -m socket --transparent -j DIVERT\n\
         -A PREROUTING -i lan -j RULES\n",
    );
    let ports = rules.ports();
    for index in 0..rules.fillers() {
        let (destination, port) = filler(index);
        let _ = writeln!(text, "-A RULES -p tcp -d {destination} --dport {port} -j STEER");
    }
    for protocol in ["tcp", "udp"] {
        let _ = writeln!(text, "-A RULES -p {protocol} -m multiport --dports {ports} -j STEER");
    }
    let tcp = by_cpu(&listeners.tcp, |cpu| format!("tcp -m cpu --cpu {cpu}"), "tcp");
    let udp = by_source_port(&listeners.udp, |from, to| format!("udp --sport {from}:{to}"));
    for (condition, port) in tcp.chain(udp) {
        let _ = writeln!(
            text,
            "-A STEER -p {condition} -j TPROXY --on-ip 127.0.0.1 --on-port {port} --tproxy-mark 0x1"
        );
    }
    text + "COMMIT\n"
}

fn nft(rules: Rules, listeners: &Listeners) -> String {
    let mut text = String::from("table ip bench {\nchain steer {\n");
    let tcp = by_cpu(&listeners.tcp, |cpu| format!("meta l4proto tcp meta cpu {cpu}"), "meta l4proto tcp");
    let udp = by_source_port(&listeners.udp, |from, to| format!("udp sport {from}-{to}"));
    for (condition, port) in tcp.chain(udp) {
        let _ = writeln!(text, "{condition} tproxy to 127.0.0.1:{port} meta mark set 1 accept");
    }
    text += "}\nchain rules {\n";
    let ports = rules.ports();
    for index in 0..rules.fillers() {
        let (destination, port) = filler(index);
        let _ = writeln!(text, "ip daddr {destination} tcp dport {port} goto steer");
    }
    let _ = writeln!(text, "meta l4proto {{ tcp, udp }} th dport {{ {ports} }} goto steer\n}}");
    text + "chain prerouting {\ntype filter hook prerouting priority mangle; policy accept;\n\
            tcp flags & (fin | syn | rst | ack) != syn socket transparent 1 meta mark set 1 accept\n\
            meta l4proto udp socket transparent 1 meta mark set 1 accept\n\
            iifname lan goto rules\n}\n}\n"
}

/// A condition for each listener; the last gets all the `rest`.
fn by_cpu<'a>(
    listeners: &'a [u16],
    condition: impl Fn(usize) -> String + 'a,
    rest: &'a str,
) -> impl Iterator<Item = (String, u16)> + 'a {
    listeners.iter().enumerate().map(move |(cpu, port)| {
        (if cpu + 1 == listeners.len() { rest.to_owned() } else { condition(cpu) }, *port)
    })
}

/// A condition for each listener, by which it gets its part of all ports.
fn by_source_port<'a>(
    listeners: &'a [u16],
    condition: impl Fn(usize, usize) -> String + 'a,
) -> impl Iterator<Item = (String, u16)> + 'a {
    let first = move |index| index * (1 << 16) / listeners.len();
    let condition = move |index| condition(first(index), first(index + 1) - 1);
    listeners.iter().enumerate().map(move |(index, port)| (condition(index), *port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_stand_before_the_one_that_matches_and_each_cpu_has_its_listener() {
        let two = Listeners { tcp: vec![4000, 4001], udp: vec![5000, 5001] };
        let text = iptables(Rules::LastOf(3), &two);
        let rules: Vec<_> = text.lines().filter(|line| line.starts_with("-A RULES")).collect();
        assert_eq!(rules.len(), 4, "one protocol each but for the last: {rules:?}");
        assert!(
            rules[1].contains("-d 198.18.0.0/24 --dport 20001 ") && !rules[2].contains("-d "),
            "{rules:?}"
        );
        assert!(text.contains("--cpu 0 -j TPROXY --on-ip 127.0.0.1 --on-port 4000 "), "{text}");
        assert!(
            text.contains("udp --sport 32768:65535 -j TPROXY --on-ip 127.0.0.1 --on-port 5001 "),
            "{text}"
        );
        let text = nft(Rules::Other, &Listeners { tcp: vec![4000], udp: Vec::new() });
        assert!(text.contains("th dport { 9 } goto steer") && !text.contains("meta cpu"), "{text}");
        assert_eq!(filler(4_095), ("198.18.63.0/24".into(), 20_063));
    }
}
