//! What `nft -j list ruleset` prints (libnftables-json(5)). Tables that iptables-nft makes are left to `iptables-save`,
//! which knows what their extensions ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde_json::Value;
use tproxy::{family::Family, host::admission::Admission};

use super::{
    Base, ChainEffect, ChainHook, FirstPacket, Obstacle, ObstacleKind, Protocol, REPEAT, View,
    nat::LEAVE_OUT,
    walk::{About, Chains, Does, FirewallRule, Test},
};

/// Tables, chains, rules, sets and maps.
pub(super) struct Ruleset<'a> {
    /// But for those that are left to `iptables-save`.
    tables: Vec<NftTable<'a>>,
}

/// What is in one table.
struct NftTable<'a> {
    family: &'a str,
    name: &'a str,
    chains: Vec<&'a Value>,
    rules: Vec<&'a Value>,
    /// Of sets and maps, by name.
    elements: BTreeMap<&'a str, &'a [Value]>,
}

impl<'a> Ruleset<'a> {
    /// Tables of iptables-nft are left out for the families that it was asked for.
    pub(super) fn new(ruleset: &'a Value, left: BTreeSet<Family>) -> Self {
        let objects = list(&ruleset["nftables"]);
        let of = |kind: &'static str| objects.iter().filter_map(move |object| object.get(kind));
        let mut tables: BTreeMap<_, _> = of("table")
            .map(|table| {
                let [family, name] = [text(table, "family"), text(table, "name")];
                let (chains, rules, elements) = (Vec::new(), Vec::new(), BTreeMap::new());
                ((family, name), NftTable { family, name, chains, rules, elements })
            })
            .collect();
        let key = |object| (text(object, "family"), text(object, "table"));
        for chain in of("chain") {
            tables.entry(key(chain)).and_modify(|table| table.chains.push(chain));
        }
        for rule in of("rule") {
            tables.entry(key(rule)).and_modify(|table| table.rules.push(rule));
        }
        for set in of("set").chain(of("map")) {
            tables.entry(key(set)).and_modify(|table| {
                table.elements.insert(text(set, "name"), list(&set["elem"]));
            });
        }
        let is_left = |table: &NftTable<'_>| {
            table.is_of_iptables() && table.families().iter().all(|family| left.contains(family))
        };
        Self { tables: tables.into_values().filter(|table| !is_left(table)).collect() }
    }

    pub(super) fn obstacles(&self, view: View<'_>) -> Vec<Obstacle> {
        self.tables.iter().flat_map(|table| table.obstacles(view)).collect()
    }

    /// Whether a table with a name of iptables' is read here.
    pub(super) fn reads(&self, family: Family, name: &str) -> bool {
        self.tables.iter().any(|table| table.families() == [family] && table.name == name)
    }
}

impl NftTable<'_> {
    /// Of what it may see.
    fn families(&self) -> &'static [Family] {
        match self.family {
            "ip" => &[Family::V4],
            "ip6" => &[Family::V6],
            "inet" => &Family::BOTH,
            _ => &[],
        }
    }

    /// What it makes has these names, and no more than simple comparisons besides its own extensions.
    fn is_of_iptables(&self) -> bool {
        let has_its_name = matches!(self.name, "filter" | "mangle" | "nat" | "raw" | "security");
        let is_its = |expression: &Value| {
            let matched = &expression["match"];
            let is_simple = matched["left"].get("ct").is_none()
                && matched["left"].get("fib").is_none()
                && matched["right"].get("set").is_none()
                && named(&matched["right"]).is_none();
            is_simple && ["vmap", "reject", "mangle"].into_iter().all(|other| expression.get(other).is_none())
        };
        self.families().len() == 1
            && has_its_name
            && self.elements.is_empty()
            && self.rules.iter().flat_map(|rule| list(&rule["expr"])).all(is_its)
    }

    fn obstacles(&self, view: View<'_>) -> Vec<Obstacle> {
        let is_seen = |packet: &&FirstPacket| self.families().contains(&packet.family);
        let seen: BTreeSet<_> = view.steered.iter().filter(is_seen).cloned().collect();
        let mut chains = Chains::new();
        for rule in &self.rules {
            chains.entry(text(rule, "chain").to_owned()).or_default().extend(self.read(rule));
        }
        let mut obstacles = Vec::new();
        for chain in &self.chains {
            let Some(base) = base(chain, &chains) else { continue };
            let seen_there: BTreeSet<_> =
                seen.iter().filter(|packet| base.hook.sees(packet)).cloned().collect();
            for ChainEffect { kind, what, packets } in base.look(view, &seen_there) {
                let at_hook = if base.hook == ChainHook::Forward { "hook forward, " } else { "" };
                let place =
                    format!("nft, table {} {}, chain {}: {at_hook}{what}", self.family, self.name, base.name);
                let cure = match kind {
                    ObstacleKind::IsBypassed => REPEAT.to_owned(),
                    ObstacleKind::RedirectsOwn => LEAVE_OUT.to_owned(),
                    _ => format!(
                        "nft insert rule {} {} {} meta mark and {:#x} == {:#x} accept",
                        self.family,
                        self.name,
                        base.name,
                        view.mark.mask(),
                        base.hook.accepted(view.mark)
                    ),
                };
                let [family, table, chain] = [self.family, self.name, base.name].map(str::to_owned);
                let admission = Admission::Nft { family, table, chain };
                obstacles.push(Obstacle { kind, place, packets, of: seen_there.clone(), cure, admission });
            }
        }
        obstacles
    }

    /// A rule; several where a map has a verdict for each of some values.
    fn read(&self, rule: &Value) -> Vec<FirewallRule> {
        let expressions = list(&rule["expr"]);
        let text = format!(
            "rule {} of chain {}, which {}",
            rule["handle"],
            text(rule, "chain"),
            described(expressions)
        );
        let mut tests = Vec::new();
        let mut about = About::Packets;
        let mut rules = Vec::new();
        let mut add = |tests: &[Test], about, does| {
            rules.push(FirewallRule { when: Test::All(tests.to_vec()), about, does, text: text.clone() });
        };
        for expression in expressions {
            if let Some(matched) = expression.get("match") {
                if is_invalid(matched) {
                    about = About::Invalid;
                } else {
                    tests.extend([implied(&matched["left"]), self.asks(matched)]);
                }
            } else if let Some(map) = expression.get("vmap") {
                for (value, does) in self.verdicts(&map["data"]) {
                    let mut tests = tests.clone();
                    let about = if is_ct_state(&map["key"]) && value == "invalid" {
                        About::Invalid
                    } else {
                        tests.extend([implied(&map["key"]), asks_for(&map["key"], value)]);
                        about
                    };
                    add(&tests, about, does);
                }
            } else if let Some(does) = verdict(expression) {
                add(&tests, about, does);
            } else if let Some(mangle) = expression.get("mangle") {
                if mangle["key"]["meta"]["key"] == "mark" {
                    add(&tests, about, set_mark(&mangle["value"]));
                }
            } else if !is_harmless(expression) {
                tests.push(Test::Unknown);
            }
        }
        rules
    }

    /// Elements of a set, written with the rule or by themselves.
    fn members<'a>(&'a self, right: &'a Value) -> Vec<&'a Value> {
        let members = match (named(right), right.get("set").unwrap_or(right)) {
            (Some(name), _) => self.elements.get(name).copied().unwrap_or_default(),
            (None, Value::Array(values)) => values,
            (None, one) => return vec![one],
        };
        members.iter().map(plain).collect()
    }

    /// Values and verdicts of a map; what it has for all others comes last.
    fn verdicts<'a>(&'a self, data: &'a Value) -> Vec<(&'a Value, Does)> {
        let mut pairs: Vec<_> = self
            .members(data)
            .into_iter()
            .filter_map(|pair| Some((plain(pair.get(0)?), verdict(pair.get(1)?)?)))
            .collect();
        pairs.sort_by_key(|(value, _)| *value == "*");
        pairs
    }

    fn asks(&self, matched: &Value) -> Test {
        let (left, right) = (&matched["left"], &matched["right"]);
        if !matches!(matched["op"].as_str(), Some("==" | "!=" | "in") | None) {
            return Test::Unknown;
        }
        let any = self.members(right).into_iter().map(|value| asks_for(left, value)).collect();
        Test::Any(any).inverted(matched["op"] == "!=")
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or("?")
}

/// `@NAME`
fn named(value: &Value) -> Option<&str> {
    value.as_str()?.strip_prefix('@')
}

/// An element without its time limit, counter and comment.
fn plain(element: &Value) -> &Value {
    element.get("elem").map_or(element, |element| &element["val"])
}

fn base<'a>(chain: &'a Value, chains: &'a Chains) -> Option<Base<'a>> {
    let hook = match chain["hook"].as_str()? {
        "prerouting" => ChainHook::Prerouting,
        "input" => ChainHook::Input,
        "forward" => ChainHook::Forward,
        "output" => ChainHook::Output,
        _ => return None,
    };
    let drops = (chain["policy"] == "drop").then_some("policy drop");
    Some(Base { chains, name: text(chain, "name"), hook, drops })
}

fn described(expressions: &[Value]) -> &'static str {
    let has = |key: &str| expressions.iter().any(|expression| expression.get(key).is_some());
    let discards = has("drop") || has("reject");
    match (discards, has("match")) {
        (true, false) => "discards every packet",
        (true, true) => "discards some packets",
        _ if has("mangle") => "sets the mark anew",
        _ if has("dnat") || has("redirect") => "sends packets elsewhere",
        _ => "discards by a map",
    }
}

/// Counters and comments narrow nothing; a limit does.
fn is_harmless(expression: &Value) -> bool {
    ["counter", "log", "comment", "notrack"].iter().any(|key| expression.get(key).is_some())
}

fn verdict(expression: &Value) -> Option<Does> {
    if expression.get("dnat").is_some() || expression.get("redirect").is_some() {
        return Some(Does::Redirect);
    }
    let target = |key: &str| Some(expression.get(key)?["target"].as_str()?.to_owned());
    if expression.get("accept").is_some() {
        Some(Does::Accept)
    } else if expression.get("drop").is_some() || expression.get("reject").is_some() {
        Some(Does::Discard)
    } else if expression.get("return").is_some() {
        Some(Does::Return)
    } else {
        target("jump").map(Does::Jump).or_else(|| target("goto").map(Does::Goto))
    }
}

fn is_ct_state(key: &Value) -> bool {
    key["ct"]["key"] == "state"
}

fn is_invalid(matched: &Value) -> bool {
    let right = matched["right"].get("set").unwrap_or(&matched["right"]);
    is_ct_state(&matched["left"])
        && matched["op"] != "!="
        && (right == "invalid" || list(right) == ["invalid"])
}

/// What a key that is read from a header asks of the packet, whatever its value.
fn implied(key: &Value) -> Test {
    if let Some(keys) = key.get("concat") {
        return Test::All(list(keys).iter().map(implied).collect());
    }
    let field = list(&key["&"]).first().unwrap_or(key);
    match field["payload"]["protocol"].as_str() {
        Some("ip") => Test::Family(Family::V4),
        Some("ip6") => Test::Family(Family::V6),
        Some(protocol @ ("tcp" | "udp" | "icmp" | "icmpv6" | "igmp" | "esp" | "ah" | "sctp" | "dccp")) => {
            transport(protocol)
        }
        _ => Test::Known(true),
    }
}

fn transport(protocol: &str) -> Test {
    match protocol {
        "tcp" => Test::Protocol(Protocol::Tcp),
        "udp" => Test::Protocol(Protocol::Udp),
        _ => Test::Known(false),
    }
}

/// Whether the first packet of a flow has this value of a key.
fn asks_for(key: &Value, value: &Value) -> Test {
    if value == "*" {
        return Test::Known(true);
    }
    if let (Some(keys), Some(values)) = (key.get("concat"), value.get("concat")) {
        return Test::All(
            list(keys).iter().zip(list(values)).map(|(key, value)| asks_for(key, value)).collect(),
        );
    }
    if is_ct_state(key) {
        return Test::Known(value == "new");
    }
    if key["fib"]["result"] == "type" && list(&key["fib"]["flags"]).iter().any(|flag| flag == "daddr") {
        return Test::Known(value == "unicast");
    }
    let payload = (key["payload"]["protocol"].as_str(), key["payload"]["field"].as_str());
    if let (Some("ip"), Some("protocol")) | (Some("ip6"), Some("nexthdr")) = payload {
        return value.as_str().map_or(Test::Unknown, transport);
    }
    match payload {
        (Some("ip" | "ip6"), Some("daddr")) => return destination(value),
        (Some("tcp" | "udp" | "th"), Some("dport")) => return destination_ports(value),
        _ => {}
    }
    let (field, mask) = match list(&key["&"]) {
        [field, mask] => (field, mask.as_u64()),
        _ => (key, Some(u64::from(u32::MAX))),
    };
    match (field["meta"]["key"].as_str(), value.as_str()) {
        (Some("iif" | "iifname"), Some(name)) => Test::From(name.to_owned()),
        (Some("l4proto"), Some(protocol)) => transport(protocol),
        (Some("nfproto" | "protocol"), Some("ipv4" | "ip")) => Test::Family(Family::V4),
        (Some("nfproto" | "protocol"), Some("ipv6" | "ip6")) => Test::Family(Family::V6),
        (Some("mark"), None) => {
            let bits = |number: Option<u64>| number.and_then(|number| u32::try_from(number).ok());
            match (bits(value.as_u64()), bits(mask)) {
                (Some(value), Some(mask)) => Test::Mark { value, mask },
                _ => Test::Unknown,
            }
        }
        _ => Test::Unknown,
    }
}

/// An address, or a prefix.
fn destination(value: &Value) -> Test {
    let prefix = &value["prefix"];
    let written = match (value.as_str(), prefix["addr"].as_str(), prefix["len"].as_u64()) {
        (Some(address), ..) => address.parse::<IpAddr>().ok().map(IpNet::from),
        (None, Some(address), Some(length)) => format!("{address}/{length}").parse().ok(),
        _ => None,
    };
    written.map_or(Test::Unknown, Test::To)
}

/// A port, or a range of them.
fn destination_ports(value: &Value) -> Test {
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
    let range = match list(&value["range"]) {
        [first, last] => port(first).zip(port(last)),
        _ => port(value).map(|port| (port, port)),
    };
    range.map_or(Test::Unknown, |(first, last)| Test::Port(first..=last))
}

/// What a mark becomes by an expression.
fn set_mark(value: &Value) -> Does {
    match constant(value) {
        Some(value) => Does::SetMark { bits: u32::MAX, to: Some(value) },
        None => Does::SetMark { bits: changed(value), to: None },
    }
}

fn constant(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

/// The two sides of an operation.
fn sides<'a>(value: &'a Value, operators: &[&str]) -> Option<(&'a Value, &'a Value)> {
    operators.iter().find_map(|operator| match list(&value[*operator]) {
        [left, right] => Some((left, right)),
        _ => None,
    })
}

/// Bits of an expression that may not be those of the packet's mark.
fn changed(value: &Value) -> u32 {
    if value["meta"]["key"] == "mark" {
        0
    } else if let Some((left, mask)) = sides(value, &["&"]) {
        changed(left) | !constant(mask).unwrap_or(0)
    } else if let Some((left, bits)) = sides(value, &["|", "^"]) {
        changed(left) | possible(bits)
    } else {
        u32::MAX
    }
}

/// Bits of an expression that may be set.
fn possible(value: &Value) -> u32 {
    if let Some((left, mask)) = sides(value, &["&"]) {
        possible(left) & constant(mask).unwrap_or(u32::MAX)
    } else {
        constant(value).unwrap_or(u32::MAX)
    }
}
