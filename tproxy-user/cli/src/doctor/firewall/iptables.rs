//! What `iptables-save` prints.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use tproxy::{
    family::Family,
    host::admission::{Admission, Iptables},
};

use super::{
    Base, ChainEffect, ChainHook, Obstacle, ObstacleKind, Protocol, REPEAT, View,
    nat::LEAVE_OUT,
    walk::{About, Chains, Does, FirewallRule, Test},
};

const HOOKS: [(&str, ChainHook); 4] = [
    ("PREROUTING", ChainHook::Prerouting),
    ("INPUT", ChainHook::Input),
    ("FORWARD", ChainHook::Forward),
    ("OUTPUT", ChainHook::Output),
];

/// One table: its chains, and the policies of those that are built in.
#[derive(Default)]
struct IptablesTable {
    chains: Chains,
    policies: BTreeMap<String, String>,
}

/// `is_left` are tables that nobody else reads: those that nft made are shown here too, as if they were iptables'.
pub(super) fn obstacles(
    save: &str,
    program: Iptables,
    family: Family,
    view: View<'_>,
    is_left: impl Fn(&str) -> bool,
) -> Vec<Obstacle> {
    let seen: BTreeSet<_> = view.steered.iter().filter(|packet| packet.family == family).cloned().collect();
    let mut obstacles = Vec::new();
    for (name, table) in tables(save).into_iter().filter(|(name, _)| is_left(name)) {
        for (chain, hook) in HOOKS {
            let is_dropping = table.policies.get(chain).is_some_and(|policy| policy == "DROP");
            let drops = is_dropping.then_some("policy DROP");
            let base = Base { chains: &table.chains, name: chain, hook, drops };
            let seen_there: BTreeSet<_> = seen.iter().filter(|packet| hook.sees(packet)).cloned().collect();
            for ChainEffect { kind, what, packets } in base.look(view, &seen_there) {
                let called = program.name();
                let place = format!("{called}, table {name}, chain {chain}: {what}");
                let of_table = if name == "filter" { String::new() } else { format!("-t {name} ") };
                let cure = match kind {
                    ObstacleKind::IsBypassed => REPEAT.to_owned(),
                    ObstacleKind::RedirectsOwn => LEAVE_OUT.to_owned(),
                    _ => format!(
                        "{called} {of_table}-I {chain} -m mark --mark {:#x}/{:#x} -j ACCEPT",
                        hook.accepted(view.mark),
                        view.mark.mask()
                    ),
                };
                let admission = Admission::Iptables { program, table: name.clone(), chain: chain.to_owned() };
                obstacles.push(Obstacle { kind, place, packets, of: seen_there.clone(), cure, admission });
            }
        }
    }
    obstacles
}

fn tables(save: &str) -> BTreeMap<String, IptablesTable> {
    let mut tables: BTreeMap<String, IptablesTable> = BTreeMap::new();
    let mut current = None;
    for line in save.lines() {
        if let Some(name) = line.strip_prefix('*') {
            current = Some(name.to_owned());
        }
        let Some(name) = &current else { continue };
        let table = tables.entry(name.clone()).or_default();
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split_whitespace();
            if let (Some(name), Some(policy)) = (words.next(), words.next()) {
                table.chains.entry(name.to_owned()).or_default();
                table.policies.insert(name.to_owned(), policy.to_owned());
            }
        }
        if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
            let rule = FirewallRule { text: line.to_owned(), ..read(rule) };
            table.chains.entry(chain.to_owned()).or_default().push(rule);
        }
    }
    tables
}

/// Words; one that is quoted keeps its first quote, so that it is taken for no option.
fn words(rule: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = rule.trim_start().chars().peekable();
    while let Some(first) = rest.next() {
        let mut word = String::from(first);
        let mut escaped = false;
        for next in rest.by_ref() {
            match next {
                '"' if first == '"' && !escaped => break,
                ' ' if first != '"' => break,
                _ => word.push(next),
            }
            escaped = next == '\\' && !escaped;
        }
        words.push(word);
        while rest.next_if(|next| *next == ' ').is_some() {}
    }
    words
}

/// A rule, without its chain. What is not understood holds for some packets.
fn read(rule: &str) -> FirewallRule {
    let words = words(rule);
    let mut rest = words.iter().map(String::as_str).peekable();
    let (mut tests, mut about, mut does) = (Vec::new(), About::Packets, Does::Nothing);
    let (mut module, mut inverted) = ("", false);
    while let Some(option) = rest.next() {
        if option == "!" {
            inverted = true;
            continue;
        }
        let mut values = Vec::new();
        while let Some(value) = rest.next_if(|word| !word.starts_with('-') && *word != "!") {
            values.push(value);
        }
        let value = values.first().copied().unwrap_or_default();
        let test = match option {
            "-j" => {
                let options: Vec<_> = rest.collect();
                does = target(value, &options);
                break;
            }
            "-g" => {
                does = Does::Goto(value.to_owned());
                break;
            }
            "-m" => {
                module = value;
                continue;
            }
            "--comment" => continue,
            "--ctstate" | "--state" => {
                if value == "INVALID" && !inverted {
                    about = About::Invalid;
                    continue;
                }
                Test::Known(value.split(',').any(|state| state == "NEW"))
            }
            "--mark" if module == "mark" => {
                masked(value).map_or(Test::Unknown, |(value, mask)| Test::Mark { value, mask })
            }
            "-i" => Test::From(match value.strip_suffix('+') {
                Some(beginning) => format!("{beginning}*"),
                None => value.to_owned(),
            }),
            "-p" => match value {
                "tcp" | "6" => Test::Protocol(Protocol::Tcp),
                "udp" | "17" => Test::Protocol(Protocol::Udp),
                "all" | "0" => Test::Known(true),
                _ => Test::Known(false),
            },
            "-d" => destination(value),
            "--dport" => destination_ports(value),
            "--dports" => Test::Any(value.split(',').map(destination_ports).collect()),
            // Of what is forwarded or goes out, the destination is elsewhere.
            "--dst-type" => Test::Known(value.split(',').any(|kind| kind == "UNICAST")),
            _ => Test::Unknown,
        };
        tests.push(test.inverted(inverted));
        inverted = false;
    }
    FirewallRule { when: Test::All(tests), about, does, text: String::new() }
}

/// `ADDRESS[/LENGTH]`; another mask is not understood.
fn destination(text: &str) -> Test {
    let host = || text.parse().ok().map(|address: IpAddr| address.into());
    text.parse().ok().or_else(host).map_or(Test::Unknown, Test::To)
}

/// `PORT[:PORT]`
fn destination_ports(text: &str) -> Test {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) => Test::Port(first..=last),
        _ => Test::Unknown,
    }
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// `VALUE[/MASK]`
fn masked(text: &str) -> Option<(u32, u32)> {
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

fn target(name: &str, options: &[&str]) -> Does {
    let value = |option: &str| {
        let at = options.iter().position(|word| *word == option)?;
        options.get(at + 1).copied()
    };
    match name {
        "ACCEPT" => Does::Accept,
        "DROP" | "REJECT" => Does::Discard,
        "RETURN" => Does::Return,
        "DNAT" | "REDIRECT" | "NETMAP" => Does::Redirect,
        "CONNMARK" if options.contains(&"--restore-mark") => {
            let bits = value("--nfmask").or_else(|| value("--mask")).and_then(number).unwrap_or(u32::MAX);
            Does::SetMark { bits, to: None }
        }
        "MARK" => {
            let set = value("--set-xmark").or_else(|| value("--set-mark")).and_then(masked);
            set.map_or(Does::Nothing, |(value, mask)| Does::SetMark { bits: value | mask, to: Some(value) })
        }
        // What other extensions do lets a packet go on, or is not told here; a chain of that name is there or is not.
        _ => Does::Jump(name.to_owned()),
    }
}
