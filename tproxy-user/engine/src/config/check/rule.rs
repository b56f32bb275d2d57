//! What does not go together in one rule.

use std::sync::Arc;

use ipnet::IpNet;
use tproxy_common::flow::Protocol;

use super::{ByName, Checker, Form, NamedSets, upstreams::Groups};
use crate::config::{
    Accept, Action, Listed, Nat, Protocols, Reach, Rule, RuleEgress, Scope, Selector, Source, Treatment,
    Upstream, draft::DraftRule, path::Path, remedy::nearest, values::Item,
};

/// Longest name of an interface, in bytes (`IFNAMSIZ` without the final zero).
const LONGEST_INTERFACE: usize = 15;

/// The longest payload of a UDP datagram over IPv4.
const LONGEST_DATAGRAM: usize = 65_507;

/// What the kernel takes (tcp(7), `TCP_KEEPIDLE`), in seconds.
pub(super) const KEEPALIVE: std::ops::RangeInclusive<u64> = 1..=32_767;

/// Longest name of a rule, in bytes.
const LONGEST_NAME: usize = 64;

impl Checker {
    /// The rule, unless it lacks something without which there is none.
    pub(super) fn rule(
        &mut self,
        index: usize,
        draft: DraftRule,
        sets: &NamedSets,
        groups: &Groups,
    ) -> Option<Rule> {
        let at = Path::rule(index);
        let name = draft.name_at(index);
        // Stand-ins; without the real ones there is no rule.
        let scope = draft.scope.map_or(Scope::Outbound, Scope::from);
        let is_action_missing = draft.action.is_none();
        let action = draft.action.and_then(|action| self.action(&at, action, groups));
        let has_action = action.is_some();
        let action = action.unwrap_or(Action::Direct);
        let selector = Selector {
            reach: Reach { scope, protocols: draft.protocol, interfaces: draft.interfaces },
            from: self.listed(&at, "from", draft.from, &sets.prefixes),
            to: self.listed(&at, "to", draft.to, &sets.prefixes),
            except: self.listed(&at, "except", draft.except, &sets.prefixes),
            ports: self.listed(&at, "ports", draft.ports, &sets.ports),
            uids: draft.uid,
            cgroups: draft.cgroup,
        };
        let treatment = Treatment {
            action,
            source: draft.source,
            egress: draft.egress,
            nat: draft.nat,
            accept: draft.accept,
            timeouts: draft.timeouts,
            limits: draft.limits,
        };
        let rule = Rule::new(&name, selector, treatment);
        for (missing, key, example) in [
            (draft.scope.is_none(), "scope", "forwarded, outbound or inbound"),
            (
                is_action_missing,
                "action",
                "direct, upstream=ADDR:PORT, upstream=URL, upstream=@NAME, respond=TEXT, reject, drop or pass",
            ),
        ] {
            if missing {
                let name = self.form.key(key);
                self.complain([at.key(key)], format!("{name} is missing: give one of {example}"));
            }
        }
        let whole = draft.scope.is_some() && has_action;
        if let Some(bits) = rule.treatment.egress.mark.filter(|bits| bits.meet(self.mark)) {
            let (key, own) = (self.form.key("egress.mark"), self.mark);
            let text = format!(
                "{key} {bits} has bits of {own}, by which this instance knows its own packets: use others, or another {}",
                self.form.key("mark")
            );
            self.complain([at.key("egress.mark"), Path::of("mark")], text);
        }
        for (keys, text) in contradictions(&rule, self.form) {
            // What follows from a stand-in is nobody's mistake.
            let guessed =
                |key: &&str| (*key == "scope" && draft.scope.is_none()) || (*key == "action" && !has_action);
            if !keys.iter().any(guessed) {
                self.complain(keys.iter().map(|key| at.key(key)), text);
            }
        }
        whole.then_some(rule)
    }

    fn listed<T>(&mut self, at: &Path, key: &str, items: Vec<Item<T>>, sets: &ByName<T>) -> Listed<T> {
        let mut listed = Listed::default();
        for (index, item) in items.into_iter().enumerate() {
            match item {
                Item::One(value) => listed.own.push(value),
                Item::Set(name) => match sets.get(&*name) {
                    Some(set) => listed.sets.push(Arc::clone(set)),
                    None => {
                        let text = no_such_set(&name, sets, self.form);
                        self.complain([at.key(key).index(index)], text);
                    }
                },
            }
        }
        listed
    }
}

fn no_such_set<T>(name: &str, sets: &ByName<T>, form: Form) -> String {
    if form != Form::File {
        return format!("@{name} names a set, which only a file has: write the members, or use --config");
    }
    let remedy = match nearest(name, sets.keys().map(String::as_str)) {
        Some(other) => format!("did you mean @{other}?"),
        None => "write it in [sets.prefixes] or [sets.ports], or leave the @ out".to_owned(),
    };
    format!("there is no set {name:?} of this kind; {remedy}")
}

/// The keys that do not go together, the one to be changed first, and what to do.
type Contradiction = (&'static [&'static str], String);

fn contradictions(rule: &Rule, form: Form) -> Vec<Contradiction> {
    let key = |key| form.key(key);
    let is = |key, value| form.is(key, value);
    let mut found: Vec<Contradiction> = Vec::new();
    let mut say = |keys, text| found.push((keys, text));
    let Rule { name, selector, treatment } = rule;
    let Reach { scope, protocols, interfaces } = &selector.reach;
    match scope {
        Scope::Forwarded if interfaces.is_empty() => say(
            &["scope", "interfaces"],
            format!(
                "{} needs {}: name the interface that the clients' packets arrive by",
                is("scope", "forwarded"),
                key("interfaces")
            ),
        ),
        Scope::Forwarded if interfaces.iter().any(|name| name == "lo") => say(
            &["interfaces", "scope"],
            format!(
                "{} has no meaning for lo in {}, since nothing is forwarded from there: name another, or use {}",
                key("interfaces"),
                is("scope", "forwarded"),
                is("scope", "outbound")
            ),
        ),
        Scope::Inbound if !interfaces.is_empty() => say(
            &["interfaces", "scope"],
            format!(
                "{} has no meaning in {}, which takes flows from every interface: leave it out",
                key("interfaces"),
                is("scope", "inbound")
            ),
        ),
        _ => {}
    }
    if let Some(name) = interfaces.iter().find(|name| !is_interface_name(name)) {
        say(
            &["interfaces"],
            format!(
                "{name:?} cannot be the name of an interface, which has 1 to {LONGEST_INTERFACE} bytes \
                 without blanks and slashes: `ip link` shows those that there are"
            ),
        );
    }
    match (scope, treatment.source) {
        (Scope::Inbound, Source::ClientPort) => say(
            &["source", "scope"],
            format!(
                "{} is impossible in {}, where the client's own connection has that address and port: use {}",
                is("source", "client-port"),
                is("scope", "inbound"),
                is("source", "client")
            ),
        ),
        (Scope::Outbound, Source::Client | Source::ClientPort) => say(
            &["source", "scope"],
            format!(
                "{} has no meaning in {}, where the client is this host: leave it out",
                is("source", "client"),
                is("scope", "outbound")
            ),
        ),
        _ => {}
    }
    for (named, sender) in [(!selector.uids.is_empty(), "uid"), (!selector.cgroups.is_empty(), "cgroup")] {
        if named && *scope != Scope::Outbound {
            let keys = if sender == "uid" { &["uid", "scope"] } else { &["cgroup", "scope"] };
            say(
                keys,
                format!(
                    "{} is about the sending process, which scopes forwarded and inbound do not know: use it with {}",
                    key(sender),
                    is("scope", "outbound")
                ),
            );
        }
    }
    about_the_way(rule, form, &mut say);
    about_the_action(rule, form, &mut say);
    about_datagrams(rule, form, &mut say);
    if !share_a_family(&selector.from, &selector.to) {
        say(
            &["to", "from"],
            format!(
                "{} and {} have no address family in common, so no packet can match both: give both in IPv4, or both in IPv6",
                key("from"),
                key("to")
            ),
        );
    }
    if *protocols == Protocols::Tcp && treatment.nat != Nat::default() {
        say(
            &["nat", "protocol"],
            format!("{} is about UDP: leave it out, or use {} or both", key("nat"), is("protocol", "udp")),
        );
    }
    if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
        say(&["name"], format!("{} must have 1 to {LONGEST_NAME} bytes, all of them printable", key("name")));
    }
    found
}

fn about_the_way(rule: &Rule, form: Form, say: &mut impl FnMut(&'static [&'static str], String)) {
    let Rule { selector, treatment, .. } = rule;
    let scope = &selector.reach.scope;
    let RuleEgress { interface, mark, source } = &treatment.egress;
    const INTERFACE: &[&str] = &["egress.interface", "action", "scope"];
    const MARK: &[&str] = &["egress.mark", "action", "scope"];
    const SOURCE: &[&str] = &["egress.source", "action", "scope"];
    let connects = treatment.action.connects();
    for (keys, given) in
        [(INTERFACE, interface.is_some()), (MARK, mark.is_some()), (SOURCE, source.is_some())]
    {
        if given && !(connects && *scope != Scope::Inbound) {
            say(
                keys,
                format!(
                    "{} is about what is relayed to an upstream elsewhere, and this rule relays nothing there: leave it \
                     out, or use {} or upstream= in scopes forwarded and outbound",
                    form.key(keys[0]),
                    form.is("action", "direct")
                ),
            );
        }
    }
    if let Some(name) = interface.as_ref().filter(|name| !is_interface_name(name)) {
        say(
            &["egress.interface"],
            format!("{name:?} cannot be the name of an interface: `ip link` shows those that there are"),
        );
    }
    if source.is_some() && treatment.source != Source::Host {
        say(
            &["egress.source", "source"],
            format!(
                "{} is an address of this host, and with {} the upstream sees the client's: leave one of them out",
                form.key("egress.source"),
                form.is("source", "client")
            ),
        );
    }
    if let Some(source) = source {
        let upstream = match &treatment.action {
            Action::Upstream(upstream) => reached_by(upstream),
            _ => families(&selector.to),
        };
        if !upstream[usize::from(source.is_ipv6())] {
            say(
                &["egress.source", "to", "action"],
                format!(
                    "{} is of another address family than all that the rule relays to: give one of the same",
                    form.key("egress.source")
                ),
            );
        }
    }
}

fn about_the_action(rule: &Rule, form: Form, say: &mut impl FnMut(&'static [&'static str], String)) {
    let Rule { selector, treatment, .. } = rule;
    let Reach { scope, protocols, .. } = &selector.reach;
    let connects = treatment.action.connects();
    let accepts = connects || matches!(treatment.action, Action::Respond(_));
    if treatment.source != Source::Host && !connects {
        say(
            &["source", "action"],
            format!(
                "{} is about the connection to the upstream: use it with {} or upstream=",
                form.key("source"),
                form.is("action", "direct")
            ),
        );
    }
    if let Action::Upstream(upstream) = &treatment.action
        && treatment.source != Source::Host
        && !meet(families(&selector.to), reached_by(upstream))
    {
        say(
            &["action", "source", "to"],
            format!(
                "{} needs an upstream of the clients' address family: give upstream= and {} in the same one",
                form.is("source", "client"),
                form.key("to")
            ),
        );
    }
    if let Action::Upstream(upstream) = &treatment.action
        && *scope == Scope::Inbound
        && treatment.source != Source::Host
        && upstream.addresses().any(|address| address.is_loopback())
    {
        say(
            &["action", "source", "scope"],
            format!(
                "an application at {upstream} cannot answer a client's address, which is none of this host's: \
                 let it listen at another address and name that, or use {}",
                form.is("source", "host")
            ),
        );
    }
    let tcp = *protocols != Protocols::Udp;
    if treatment.accept != Accept::default() && !(connects && tcp) {
        say(
            &["accept", "action", "protocol"],
            format!("{} is about TCP connections to upstreams: leave it out", form.key("accept")),
        );
    }
    const CONNECT: &[&str] = &["timeouts.connect", "action", "protocol"];
    const IDLE: &[&str] = &["timeouts.idle", "action", "protocol"];
    const KEEPALIVE: &[&str] = &["timeouts.keepalive", "action", "protocol"];
    const CONNECTIONS: &[&str] = &["limits.connections", "action", "protocol"];
    for (keys, given, works) in [
        (CONNECT, treatment.timeouts.connect.is_some(), connects && tcp),
        (IDLE, treatment.timeouts.idle.is_some(), accepts && tcp),
        (KEEPALIVE, treatment.timeouts.keepalive.is_some(), connects && tcp),
        (CONNECTIONS, treatment.limits.connections.is_some(), accepts && tcp),
    ] {
        if given && !works {
            let text = format!(
                "{} is about TCP connections, and this rule makes none: leave it out, or use another action or protocol",
                keys[0]
            );
            say(keys, text);
        }
    }
}

fn about_datagrams(rule: &Rule, form: Form, say: &mut impl FnMut(&'static [&'static str], String)) {
    let Rule { selector, treatment, .. } = rule;
    let udp = selector.reach.protocols != Protocols::Tcp;
    if let Action::Respond(text) = &treatment.action
        && udp
        && text.len() > LONGEST_DATAGRAM
    {
        let length = text.len();
        say(
            &["action", "protocol"],
            format!(
                "a datagram holds {LONGEST_DATAGRAM} bytes, and the text of respond= has {length}: shorten it, or use {}",
                form.is("protocol", "tcp")
            ),
        );
    }
    if let Action::Upstream(upstream) = &treatment.action
        && udp
        && !upstream.carries(Protocol::Udp)
    {
        say(
            &["protocol", "action"],
            format!(
                "an upstream that a URL names carries TCP, and this rule selects UDP, too: use {}, and another rule for UDP",
                form.is("protocol", "tcp")
            ),
        );
    }
    if treatment.limits.amplification.is_some() && !(udp && matches!(treatment.action, Action::Respond(_))) {
        say(
            &["limits.amplification", "action", "protocol"],
            "limits.amplification is about answers of respond= over UDP, and this rule gives none: leave it out, or use \
             another action or protocol"
                .to_owned(),
        );
    }
    if let Some(time) = treatment.timeouts.keepalive.filter(|time| !KEEPALIVE.contains(&time.as_secs())) {
        say(
            &["timeouts.keepalive"],
            format!("timeouts.keepalive must be between 1s and 32767s, and {time:?} is not"),
        );
    }
}

fn is_interface_name(name: &str) -> bool {
    let bad = |c: char| c == '/' || c.is_whitespace() || c.is_control();
    !name.is_empty() && name.len() <= LONGEST_INTERFACE && !name.contains(bad)
}

/// Whether the prefixes, none meaning any, have some of IPv4, and of IPv6.
fn families(prefixes: &Listed<IpNet>) -> [bool; 2] {
    let some = |v6| prefixes.is_any() || prefixes.iter().any(|net| matches!(net, IpNet::V6(_)) == v6);
    [some(false), some(true)]
}

/// Sets without members match nothing, but that may change.
fn share_a_family(from: &Listed<IpNet>, to: &Listed<IpNet>) -> bool {
    let (from, to) = (families(from), families(to));
    from == [false; 2] || to == [false; 2] || meet(from, to)
}

/// Whether an upstream may be reached by IPv4, and by IPv6.
fn reached_by(upstream: &Upstream) -> [bool; 2] {
    let is_named = matches!(upstream, Upstream::Group(group) if group.has_names());
    [false, true].map(|v6| is_named || upstream.addresses().any(|address| address.is_ipv6() == v6))
}

fn meet(one: [bool; 2], other: [bool; 2]) -> bool {
    (0..2).any(|family| one[family] && other[family])
}
