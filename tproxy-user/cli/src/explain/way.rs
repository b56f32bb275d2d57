//! By which way leaves what a rule relays.

use std::time::Duration;

use hyper::Method;
use tokio::time::timeout;
use tproxy::{
    config::{Action, Pick, Rule, Treatment, Upstream, UpstreamGroup},
    family::Family,
    host::{OnRecord, control_socket, policy},
    mark::Mark,
    way::{Asked, Way},
};
use tproxy_common::rule::Scope;

use super::{Case, ExplainStep};
use crate::control::{self, client::Client};

/// For an instance to answer, which it does at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is told of it; nothing where the rule relays nothing elsewhere.
pub(super) fn step(case: &Case, rule: &Rule, mark: Mark, priority: u32) -> Option<ExplainStep> {
    let ifindex = match case.scope {
        Scope::Forwarded => case.flow.ifindex,
        Scope::Outbound => 0,
        Scope::Inbound => return None,
    };
    let asked = Asked {
        protocol: case.flow.protocol,
        client: case.source,
        dst: case.destination,
        ifindex,
        uid: case.flow.uid,
    };
    let found = match Way::of(rule, mark, &asked) {
        Ok(way) => {
            let way = way?;
            towards(&rule.treatment.action)
                + &way.to_string()
                + &taken_by(&way, Family::of(case.destination.ip()), mark, priority)
        }
        Err(error) => format!("there is no way for it, as the client is told: {error}"),
    };
    Some(ExplainStep { step: "egress", found })
}

/// The servers that it goes by, in the order of the configuration.
fn towards(action: &Action) -> String {
    match action {
        Action::Upstream(Upstream::Group(group)) => {
            let servers: Vec<_> = group.servers.iter().map(ToString::to_string).collect();
            format!("to {}, ", servers.join(" or "))
        }
        _ => String::new(),
    }
}

/// A rule of others that comes first, with the table that it leads to.
fn taken_by(way: &Way, family: Family, mark: Mark, priority: u32) -> String {
    let (Some(meant), Some(table)) = (way.meant, way.table) else { return String::new() };
    let rules = policy::rules().unwrap_or_default();
    let before = rules.iter().find(|rule| {
        rule.family == family
            && rule.priority < priority
            && rule.table == Some(table)
            && rule.may_take_relayed(mark)
    });
    match before {
        Some(rule) if meant != table => {
            format!(
                "; but a rule of others is asked first and leads to table {table}: {rule} (see --priority)"
            )
        }
        _ => String::new(),
    }
}

/// Rules of an instance that runs, as far as they say how flows leave; none, where it does not answer.
pub(super) fn rules_of(instance: &OnRecord, scope: Scope) -> Vec<Rule> {
    let ask = || {
        let name = control_socket::of_process(instance.pid)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        let client = Client::new(Some(name));
        let asked =
            async { timeout(PATIENCE, client.ask::<Vec<control::ShownRule>>(Method::GET, "/rules")).await };
        runtime.block_on(asked).ok()?.ok()
    };
    ask().unwrap_or_default().into_iter().map(|shown| rule(shown, scope)).collect()
}

/// Of those of the same scope only it matters which scope that is.
fn rule(shown: control::ShownRule, scope: Scope) -> Rule {
    let action = match (&*shown.action, shown.action.strip_prefix("upstream=").map(str::parse)) {
        ("direct", _) => Action::Direct,
        _ if !shown.servers.is_empty() => Action::Upstream(group(&shown.servers)),
        (_, Some(Ok(upstream))) => Action::Upstream(upstream),
        // It relays nothing.
        _ => Action::Pass,
    };
    let treatment = Treatment { source: shown.source, egress: shown.egress, ..action.into() };
    Rule::new(&shown.name, scope, treatment)
}

/// Servers by their URLs.
fn group(urls: &[String]) -> Upstream {
    let server = |url: &String| match url.parse() {
        Ok(Upstream::Group(group)) => group.servers.first().cloned(),
        _ => None,
    };
    let servers = urls.iter().filter_map(server).collect();
    Upstream::Group(
        UpstreamGroup { name: None, servers, pick: Pick::First, check: None, credentials: None }.into(),
    )
}
