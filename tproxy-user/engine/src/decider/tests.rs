//! What is known of a connection decides, and what is not known only where it makes no difference.

use super::*;
use crate::{
    config::{Action, Reach, Rule, Selector},
    host::local_table::LocalTable,
};

const LAN: u32 = 2;
const WAN: u32 = 3;

fn rule(scope: Scope, interfaces: &[&str]) -> Rule {
    let interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
    Rule::new("test", Reach { interfaces, ..scope.into() }, Action::Direct)
}

fn known(rules: &[Rule]) -> Known {
    let index = |name: &String| if name == "lan" { LAN } else { WAN };
    let limit = |reach: &Reach| {
        (reach.scope != Scope::Inbound).then(|| reach.interfaces.iter().map(index).collect::<BTreeSet<_>>())
    };
    let compiled = Compiled::new(rules, limit, &vec![Vec::new(); rules.len()]);
    Known {
        rules: Some((7, Arc::new(compiled))),
        hosts: ["10.1.0.1/32", "10.2.0.1/32", "127.0.0.0/8"]
            .map(|text| text.parse().unwrap())
            .into_iter()
            .collect::<LocalTable>()
            .into(),
    }
}

fn accepted(client: &str, dst: &str, ifindex: u32) -> Accepted {
    let dst = dst.parse().unwrap();
    Accepted { client: client.parse().unwrap(), dst, before_nat: dst, ifindex: Some(ifindex) }
}

fn nobody(_: &Accepted, _: &Compiled) -> Option<Sender> {
    None
}

fn decided(rule: u32, origin: Origin) -> Option<Decided> {
    Some(Decided { rule: RuleNumber(rule_number(7, rule)), origin })
}

#[test]
fn the_interface_tells_rules_apart_and_where_it_is_not_known_none_of_them_is_taken() {
    let both = known(&[rule(Scope::Forwarded, &["wan"]), rule(Scope::Forwarded, &["lan"])]);
    let mut connection = accepted("10.1.0.2:4000", "8.8.8.8:80", LAN);
    let origin = Origin { ifindex: LAN, ..Origin::default() };
    assert_eq!(both.decide(&connection, nobody), decided(1, origin));
    connection.ifindex = None;
    assert_eq!(both.decide(&connection, nobody), None);
    let one = known(&[rule(Scope::Forwarded, &["lan"])]);
    assert_eq!(one.decide(&connection, nobody), decided(0, Origin::default()), "there is no other");
}

#[test]
fn what_was_steered_is_not_what_a_rule_lets_pass() {
    let passing = Rule { treatment: Action::Pass.into(), ..rule(Scope::Forwarded, &["wan"]) };
    let rules = known(&[passing, rule(Scope::Forwarded, &["lan"])]);
    let connection = Accepted { ifindex: None, ..accepted("10.1.0.2:4000", "8.8.8.8:80", 0) };
    assert_eq!(rules.decide(&connection, nobody), decided(1, Origin::default()));
}

#[test]
fn addresses_and_nat_tell_the_scope() {
    let rules = known(&[
        rule(Scope::Forwarded, &["lan"]),
        rule(Scope::Inbound, &[]),
        rule(Scope::Outbound, &["wan"]),
    ]);
    let of = |connection: &Accepted| {
        let decided = rules.decide(connection, |_, _| Some(Sender::default()))?;
        Some(decided.rule.0 - rule_number(7, 0))
    };
    let connection = accepted("10.1.0.2:4000", "8.8.8.8:80", LAN);
    assert_eq!(of(&connection), Some(0));
    assert_eq!(of(&accepted("10.1.0.2:4000", "10.1.0.1:80", LAN)), Some(1));
    assert_eq!(of(&accepted("10.2.0.1:4000", "8.8.8.8:80", LOOPBACK)), Some(2));
    assert_eq!(of(&accepted("10.2.0.1:4000", "8.8.8.8:80", LAN)), None, "somebody feigns the address");
    let redirected = Accepted { dst: "10.1.0.1:3128".parse().unwrap(), ..connection };
    assert_eq!(of(&redirected), Some(0));
    let published = Accepted { before_nat: "10.1.0.1:80".parse().unwrap(), ..connection };
    assert_eq!(of(&published), Some(0));
}

#[test]
fn who_sends_is_asked_where_rules_ask_for_it() {
    let anybodys = rule(Scope::Outbound, &["wan"]);
    let of_user = Rule { selector: Selector { uids: vec![1000], ..anybodys.selector.clone() }, ..anybodys };
    let connection = accepted("10.2.0.1:4000", "8.8.8.8:80", LOOPBACK);
    let by_user = known(&[of_user, rule(Scope::Outbound, &["wan"])]);
    assert_eq!(by_user.decide(&connection, nobody), None);
    let user = Sender { uid: 1000, mark: 4, device: WAN, ..Sender::default() };
    let origin = Origin { mark: 4, uid: 1000, ifindex: 0, device: WAN };
    assert_eq!(by_user.decide(&connection, |_, _| Some(user.clone())), decided(0, origin));
    let other = Sender { uid: 1, ..Sender::default() };
    let origin = Origin { uid: 1, ..Origin::default() };
    assert_eq!(by_user.decide(&connection, |_, _| Some(other.clone())), decided(1, origin));
    let anybody = known(&[rule(Scope::Outbound, &["wan"])]);
    assert_eq!(anybody.decide(&connection, nobody), decided(0, Origin::default()));
}
