//! Policy routing, instances that run, and what others left.

use tproxy::host::{
    Change, HostError, Identity, OnRecord, Standing, on_record,
    policy::{self, RoutingRule, route_in},
};

use super::{Finding, running};

pub(super) const INSTANCES: &str = "instances";
const MARK: &str = "mark";
const TABLE: &str = "table";
const RULES: &str = "rules";

/// The table `local`, which is looked up first everywhere and has the host's own addresses only.
const LOCAL: u32 = 255;

pub(super) fn examine(identity: &Identity) -> Vec<Finding> {
    let (known, mut findings) = match on_record() {
        Ok(known) => {
            let mut findings = instances(&known, identity);
            let lives = |instance: &&OnRecord| instance.standing == Standing::Lives;
            findings.extend(known.iter().filter(lives).flat_map(|instance| running::examine(instance.pid)));
            (known, findings)
        }
        Err(error @ HostError::Journal { .. }) => {
            let breaks = "tproxy does not start, since what it changes on the host must be on record";
            let finding = Finding::fail(INSTANCES, error.to_string(), breaks, "mount -o remount,rw /run");
            (Vec::new(), vec![finding])
        }
        Err(error) => (Vec::new(), vec![Finding::unknown(INSTANCES, &error)]),
    };
    match policy::rules() {
        Ok(rules) => {
            let foreign: Vec<_> = rules.into_iter().filter(|rule| !is_on_record(rule, &known)).collect();
            findings.extend(marks(&foreign, identity));
            if known
                .iter()
                .any(|instance| instance.changes.iter().any(|change| matches!(change, Change::Way { .. })))
            {
                findings.extend(relayed(&foreign, identity));
            }
            findings.extend(before(&foreign, identity, |table| matches!(route_in(table), Ok(Some(_)))));
        }
        Err(error) => findings.push(Finding::unknown(RULES, &error)),
    }
    if !known.iter().any(|instance| instance.identity.table == identity.table) {
        findings.push(table(identity.table));
    }
    findings
}

pub(super) fn is_on_record(rule: &RoutingRule, known: &[OnRecord]) -> bool {
    known.iter().any(|instance| rule.change(&instance.identity).is_some())
}

fn instances(known: &[OnRecord], wanted: &Identity) -> Vec<Finding> {
    let mut findings = Vec::new();
    for OnRecord { pid, identity, standing, changes } in known {
        let Identity { mark, table, priority } = identity;
        findings.push(match standing {
            Standing::Lives => {
                let shared = *mark == wanted.mark || *table == wanted.table;
                let found = format!("runs here: pid {pid}, mark {mark}, table {table}, priority {priority}");
                let note = if shared { "; another beside it needs its own --mark and --table" } else { "" };
                Finding::ok(INSTANCES, found + note)
            }
            Standing::Held => Finding::warn(
                INSTANCES,
                format!("pid {pid} is gone, and what its rules select is rejected, as its on_exit says"),
                "new flows that its rules select do not get through",
                format!("tproxy run with --mark {mark} --table {table} --priority {priority}, which takes over; or tproxy cleanup"),
            ),
            Standing::LeftOver => {
                let left: Vec<_> = changes.iter().map(ToString::to_string).collect();
                Finding::warn(
                    INSTANCES,
                    format!("pid {pid} was killed and left {}", left.join(", ")),
                    "its rules select nothing by now, but sockets of it in TIME_WAIT may swallow forwarded packets for a minute",
                    "tproxy cleanup",
                )
            }
        });
    }
    if findings.is_empty() {
        findings.push(Finding::ok(INSTANCES, "none runs here, and none left anything"));
    }
    findings
}

fn marks(foreign: &[RoutingRule], identity: &Identity) -> Vec<Finding> {
    let mark = identity.mark;
    let mut findings: Vec<_> = foreign
        .iter()
        .filter(|rule| rule.selects_by(mark))
        .map(|rule| {
            Finding::fail(
                MARK,
                format!("somebody's rule selects by bits of {mark}: {rule}"),
                "tproxy does not start, since packets would be taken for its own",
                format!("{} if it is a leftover; otherwise tproxy run --mark …", rule.deletion()),
            )
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok(MARK, format!("no rule of others selects by bits of {mark}")));
    }
    findings
}

/// Rules that are asked before ours, and may send steered packets elsewhere.
pub(super) fn before(
    foreign: &[RoutingRule],
    identity: &Identity,
    leads_anywhere: impl Fn(u32) -> bool,
) -> Vec<Finding> {
    let takes = |rule: &&RoutingRule| {
        rule.priority < identity.priority
            && rule.may_take(identity.mark)
            && rule.table.is_none_or(|table| table != LOCAL && leads_anywhere(table))
    };
    let mut findings: Vec<_> = foreign
        .iter()
        .filter(takes)
        .map(|rule| {
            let below = foreign.iter().map(|rule| rule.priority).filter(|priority| *priority > 0).min();
            let free = below.unwrap_or(identity.priority).saturating_sub(1).max(1);
            Finding::warn(
                RULES,
                format!("asked before ours (priority {}): {rule}", identity.priority),
                "steered packets that it selects are routed away in place of being delivered",
                format!("tproxy run --priority {free} …"),
            )
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok(
            RULES,
            format!("no rule of others before priority {} takes steered packets", identity.priority),
        ));
    }
    findings
}

/// Rules that are asked before those of ours by which what is relayed leaves as the client's own packets would.
fn relayed(foreign: &[RoutingRule], identity: &Identity) -> Vec<Finding> {
    let takes = |rule: &&RoutingRule| {
        rule.priority < identity.priority
            && rule.may_take_relayed(identity.mark)
            && rule.table.is_some_and(|table| table != LOCAL)
    };
    let finding = |rule: &RoutingRule| {
        Finding::warn(
            RULES,
            format!("asked before ours (priority {}): {rule}", identity.priority),
            "what is relayed and selected by it leaves by that table, and not by the one of the client's own packets",
            "tproxy run --priority with a lower number; tproxy explain shows the way of a flow",
        )
    };
    foreign.iter().filter(takes).map(finding).collect()
}

fn table(table: u32) -> Finding {
    match route_in(table) {
        Ok(None) => Finding::ok(TABLE, format!("table {table} is free")),
        Ok(Some(route)) => Finding::fail(
            TABLE,
            format!("somebody's route: {route}"),
            "tproxy does not start, since it would share a table",
            format!("ip route flush table {table} if it is a leftover; otherwise tproxy run --table …"),
        ),
        Err(error) => Finding::unknown(TABLE, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;
    use tproxy::family::Family;

    fn rule(priority: u32, mark: Option<(u32, u32)>, table: u32) -> RoutingRule {
        RoutingRule {
            family: Family::V4,
            priority,
            iif: None,
            mark,
            inverted: false,
            uids: None,
            narrowed: false,
            by_source: false,
            by_port: false,
            table: Some(table),
            goto: None,
            idle: false,
            by_kernel: false,
        }
    }

    fn worst(findings: &[Finding]) -> Level {
        findings.iter().map(|finding| finding.level).max().unwrap()
    }

    #[test]
    fn a_rule_of_others_on_our_mark_is_named_with_what_deletes_it() {
        let foreign = [rule(50, Some((0x2000_0000, 0x2000_0000)), 7)];
        let findings = marks(&foreign, &Identity::DEFAULT);
        assert_eq!(worst(&findings), Level::Fail);
        assert!(findings[0].cure.as_ref().unwrap().starts_with("ip rule del pref 50"), "{findings:?}");
        assert_eq!(worst(&marks(&[rule(50, Some((1, 1)), 7)], &Identity::DEFAULT)), Level::Ok);
    }

    #[test]
    fn only_rules_that_are_asked_earlier_and_may_select_steered_packets_matter() {
        let level = |rule| worst(&before(&[rule], &Identity::DEFAULT, |_| true));
        assert_eq!(level(rule(0, None, LOCAL)), Level::Ok, "everybody has it");
        assert_eq!(level(rule(200, None, 7)), Level::Ok, "after ours");
        assert_eq!(level(rule(50, Some((1, 1)), 7)), Level::Ok, "another mark");
        assert_eq!(level(rule(50, None, 7)), Level::Warn);
        assert_eq!(
            level(RoutingRule { inverted: true, ..rule(50, Some((1, 1)), 7) }),
            Level::Warn,
            "wg-quick"
        );
        let nowhere = before(&[rule(50, None, 7)], &Identity::DEFAULT, |_| false);
        assert_eq!(worst(&nowhere), Level::Ok, "an empty table decides nothing");
    }

    #[test]
    fn what_takes_relayed_packets_before_ours_is_named() {
        let is_named = |rule: RoutingRule| !relayed(&[rule], &Identity::DEFAULT).is_empty();
        assert!(is_named(rule(50, None, 7)));
        assert!(is_named(RoutingRule { inverted: true, ..rule(50, Some((1, 1)), 7) }), "wg-quick");
        assert!(is_named(RoutingRule { by_source: true, narrowed: true, ..rule(50, None, 7) }));
        assert!(!is_named(rule(200, None, 7)), "after ours");
        assert!(!is_named(rule(50, Some((1, 1)), 7)), "another mark");
        assert!(!is_named(RoutingRule { iif: Some("lan".into()), ..rule(50, None, 7) }), "what is forwarded");
        assert!(!is_named(RoutingRule { uids: Some((1000, 1999)), ..rule(50, None, 7) }), "users");
    }

    #[test]
    fn the_priority_that_is_advised_comes_before_all_of_them() {
        let foreign = [rule(0, None, LOCAL), rule(50, None, 7), rule(40, None, 8)];
        let findings = before(&foreign, &Identity::DEFAULT, |_| true);
        assert!(findings.iter().all(|finding| finding.cure.as_deref() == Some("tproxy run --priority 39 …")));
    }
}
