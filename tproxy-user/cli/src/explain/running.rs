//! Asking the instances that run.

use nix::ifaddrs::getifaddrs;
use tproxy::{
    datapath::{
        running::{Answer, Running, RunningError},
        support,
    },
    host::{Identity, OnRecord, links::Layer},
};
use tproxy_common::rule::RuleIndex;

use super::{Case, ExplainError, ExplainStep, Explanation, packet, steps, way};

/// Of these instances, in the order in which they see a packet: all that let it pass, and the first
/// that does not.
pub(super) fn explain(case: &Case, alive: &[OnRecord]) -> Result<Vec<Explanation>, ExplainError> {
    let mut instances =
        alive.iter().map(|instance| Running::of(instance.pid)).collect::<Result<Vec<_>, _>>()?;
    let position = |instance: &Running| attached(case, instance).unwrap_or(usize::MAX);
    instances.sort_by_key(position);
    let mut explanations = Vec::new();
    for instance in instances {
        let mut explanation = ask(case, &instance)?;
        if let Some(found) = alive.iter().find(|found| found.pid == instance.pid) {
            complete(&mut explanation, case, found);
        }
        let passes = explanation.passes();
        explanations.push(explanation);
        if !passes {
            break;
        }
    }
    Ok(explanations)
}

/// Adds what only the process knows: the rule's name, and by which way what it relays leaves.
fn complete(explanation: &mut Explanation, case: &Case, instance: &OnRecord) {
    let Some(rule) = explanation.rule else { return };
    let Some(rule) = way::rules_of(instance, case.scope).into_iter().nth(rule as usize) else { return };
    explanation.name = Some(rule.name.as_ref().to_owned());
    if explanation.steers() {
        let Identity { mark, priority, .. } = instance.identity;
        explanation.steps.extend(way::step(case, &rule, mark, priority));
    }
}

/// At which place of the hook the instance's program is.
fn attached(case: &Case, instance: &Running) -> Option<usize> {
    let (link, hook) = (case.link.as_ref()?, case.hook()?);
    let (id, _) = instance.program(link, hook).ok()??;
    support::attached(&link.name, hook).iter().position(|program| program.id == id)
}

fn ask(case: &Case, instance: &Running) -> Result<Explanation, ExplainError> {
    let nameless = |_: RuleIndex| None;
    let tables = instance.tables(case.scope, &case.flow, &case.sender)?;
    let (mut steps, verdict, rule) = steps::walk(case, &tables, &nameless);
    let of = format!("the instance with pid {}", instance.pid);
    let by_tables = format!("the policy, over the maps of {of}");
    let (Some(link), Some(hook)) = (&case.link, case.hook()) else {
        let how =
            "the kernel runs no sk_lookup program on request, so its policy was asked, over the very maps";
        steps.insert(0, ExplainStep { step: "program", found: how.into() });
        return Ok(Explanation::new(by_tables, case, steps, verdict.reason(), rule));
    };
    let (id, name) = match instance.program(link, hook) {
        Ok(Some(program)) if !support::has_tcx() || attached(case, instance).is_some() => program,
        // Loaded for other interfaces, or not at all.
        Ok(_) => {
            let found = format!("nothing is attached to {hook} of {}: no rule is about it", link.name);
            return Ok(unhooked(by_tables, case, steps, found));
        }
        // Nothing can be attached there.
        Err(RunningError::Attach(error)) => return Ok(unhooked(by_tables, case, steps, error.to_string())),
        Err(error) => return Err(error.into()),
    };
    let Some(mac) = (link.layer != Layer::Ip).then(|| mac(&link.name)).flatten() else {
        let found = format!(
            "{name} (id {id}) cannot be run on request for {}, which has no Ethernet address",
            link.name
        );
        steps.insert(0, ExplainStep { step: "program", found });
        return Ok(Explanation::new(by_tables, case, steps, verdict.reason(), rule));
    };
    let packet = packet::first(case.flow.protocol, case.source, case.destination, mac);
    let Answer { reason, rule: decided, worker } =
        instance.ask(link, hook, &packet, &case.flow.tuple, case.flow.uid)?;
    if !tables.deciding {
        steps.push(ExplainStep { step: "draining", found: "it takes no new flow any more".into() });
    } else if reason != verdict.reason() {
        let found =
            format!("the rules alone say {}; the program knows more of the flow", verdict.reason().name());
        steps.push(ExplainStep { step: "program", found });
    }
    let asked = format!("{name} (id {id}) at {hook} of {}, of {of}", link.name);
    let mut explanation = Explanation::new(asked, case, steps, reason, decided);
    explanation.worker = worker;
    Ok(explanation)
}

/// The instance does not see the flow at all.
fn unhooked(asked: String, case: &Case, mut steps: Vec<ExplainStep>, found: String) -> Explanation {
    steps.push(ExplainStep { step: "program", found });
    Explanation {
        asked,
        scope: case.scope.into(),
        steps,
        verdict: "pass",
        reason: "no_hook",
        meaning: "Passed: no program of the instance sees such packets there.",
        rule: None,
        name: None,
        worker: None,
    }
}

/// The hardware address of an interface: packets to others are not for this host.
fn mac(name: &str) -> Option<[u8; 6]> {
    let own = getifaddrs().ok()?.filter(|addr| addr.interface_name == name);
    own.filter_map(|addr| addr.address).find_map(|addr| addr.as_link_addr()?.addr())
}
