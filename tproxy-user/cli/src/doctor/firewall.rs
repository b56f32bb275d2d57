//! Firewalls: steered packets traverse INPUT, where they meet rules that never saw forwarded packets.

use std::process::Command;

use serde_json::Value;
use tproxy::mark::Mark;

use super::Finding;

const CHECK: &str = "firewall";

pub(super) fn examine(mark: Mark) -> Vec<Finding> {
    let mut findings = Vec::new();
    let saves = [("iptables-save", "iptables"), ("ip6tables-save", "ip6tables")];
    for (save, program) in saves {
        if let Some(text) = output(save, &[]) {
            findings.extend(iptables(&text, program, mark));
        }
    }
    if let Some(text) = output("nft", &["-j", "list", "ruleset"]) {
        match serde_json::from_str(&text) {
            Ok(ruleset) => findings.extend(nft(&ruleset, mark)),
            Err(error) => findings.push(Finding::unknown(CHECK, &format!("nft -j list ruleset: {error}"))),
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            "no rule of iptables or nft discards what INPUT is not asked to accept",
        ));
    }
    findings
}

/// What a program prints. One that is not installed has no rules, since it takes it to make them.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let ended = Command::new(program).args(args).output().ok()?;
    ended.status.success().then(|| String::from_utf8_lossy(&ended.stdout).into_owned())
}

const BREAKS: &str =
    "steered packets traverse INPUT and no longer FORWARD; what it does not accept by another rule is lost";

/// What `iptables-save` prints: the table `filter`, chain INPUT.
fn iptables(save: &str, program: &str, mark: Mark) -> Option<Finding> {
    let filter = save.split("*filter\n").nth(1)?.split("COMMIT").next()?;
    let accepted = format!("-A INPUT -m mark --mark {:#x}/{:#x} -j ACCEPT", mark.steer(), mark.mask());
    let mut discards = None;
    for line in filter.lines() {
        if line == accepted {
            return None;
        }
        // Without a match, for every packet.
        if line.starts_with("-A INPUT -j DROP") || line.starts_with("-A INPUT -j REJECT") {
            discards = Some(line);
            break;
        }
        if line.starts_with(":INPUT DROP") {
            discards = Some("policy DROP");
        }
    }
    let cure = format!("{program} -I INPUT -m mark --mark {mark} -j ACCEPT");
    Some(Finding::warn(CHECK, format!("{program}, table filter, chain INPUT: {}", discards?), BREAKS, cure))
}

/// What `nft -j list ruleset` prints: base chains at the hook `input`. Those of iptables-nft are left to `iptables-save`.
fn nft(ruleset: &Value, mark: Mark) -> Vec<Finding> {
    let objects = ruleset["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rules = |chain: &Value| -> Vec<&Value> {
        let of_chain = |rule: &&Value| {
            ["family", "table"].into_iter().all(|key| rule[key] == chain[key])
                && rule["chain"] == chain["name"]
        };
        objects.iter().filter_map(|object| object.get("rule")).filter(of_chain).collect()
    };
    let mut findings = Vec::new();
    for chain in objects.iter().filter_map(|object| object.get("chain")) {
        let by_iptables = chain["name"] == "INPUT" && chain["table"] == "filter" && chain["family"] != "inet";
        if chain["hook"] == "input" && !by_iptables {
            findings.extend(discards(chain, &rules(chain), mark));
        }
    }
    findings
}

fn discards(chain: &Value, rules: &[&Value], mark: Mark) -> Option<Finding> {
    let mut found = (chain["policy"] == "drop").then_some("policy drop");
    for rule in rules {
        let expressions = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
        match expressions {
            [matched, verdict] if verdict.get("accept").is_some() && is_our_mark(matched, mark) => {
                return None;
            }
            // Counters and comments do not narrow it.
            [.., verdict]
                if (verdict.get("drop").is_some() || verdict.get("reject").is_some())
                    && !expressions.iter().any(|expression| expression.get("match").is_some()) =>
            {
                found = Some("a rule that discards every packet");
                break;
            }
            _ => {}
        }
    }
    let name = |key: &str| chain[key].as_str().unwrap_or("?");
    let (family, table, chain) = (name("family"), name("table"), name("name"));
    let cure = format!(
        "nft insert rule {family} {table} {chain} meta mark and {:#x} == {:#x} accept",
        mark.mask(),
        mark.steer()
    );
    Some(Finding::warn(
        CHECK,
        format!("nft, table {family} {table}, chain {chain}: {}", found?),
        BREAKS,
        cure,
    ))
}

fn is_our_mark(expression: &Value, mark: Mark) -> bool {
    let matched = &expression["match"];
    let [field, mask] = matched["left"]["&"].as_array().map(Vec::as_slice).unwrap_or_default() else {
        return false;
    };
    field["meta"]["key"] == "mark" && *mask == mark.mask() && matched["right"] == mark.steer()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn save(lines: &str) -> Option<Finding> {
        let text = format!("*nat\n:INPUT ACCEPT [0:0]\nCOMMIT\n*filter\n{lines}COMMIT\n");
        iptables(&text, "iptables", Mark::DEFAULT)
    }

    #[test]
    fn iptables_discards_by_policy_or_by_a_last_rule_unless_the_mark_is_accepted_before() {
        let accept = "-A INPUT -m mark --mark 0x20000000/0x30000000 -j ACCEPT\n";
        assert_eq!(save(":INPUT ACCEPT [1:1]\n-A INPUT -p tcp -j DROP\n"), None, "some packets only");
        for discarding in [
            ":INPUT DROP [0:0]\n",
            ":INPUT ACCEPT [0:0]\n-A INPUT -j REJECT --reject-with icmp-port-unreachable\n",
        ] {
            let finding = save(discarding).unwrap();
            let cure = finding.cure.as_deref();
            assert_eq!(cure, Some("iptables -I INPUT -m mark --mark 0x20000000/0x30000000 -j ACCEPT"));
        }
        assert_eq!(save(&format!(":INPUT DROP [0:0]\n{accept}")), None);
        assert!(save(&format!(":INPUT ACCEPT [0:0]\n-A INPUT -j DROP\n{accept}")).is_some(), "too late");
    }

    #[test]
    fn nft_chains_at_input_discard_unless_the_mark_is_accepted_before() {
        let chain = |policy: &str| json!({"chain": {"family": "inet", "table": "f", "name": "in", "hook": "input", "policy": policy}});
        let rule =
            |expr: Value| json!({"rule": {"family": "inet", "table": "f", "chain": "in", "expr": expr}});
        let accept = rule(json!([
            {"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 0x3000_0000]}, "right": 0x2000_0000}},
            {"accept": null}
        ]));
        let all = rule(json!([{"counter": {}}, {"drop": null}]));
        let some =
            rule(json!([{"match": {"left": {"meta": {"key": "iifname"}}, "right": "x"}}, {"drop": null}]));
        let findings = |objects: &[Value]| nft(&json!({ "nftables": objects }), Mark::DEFAULT).len();
        assert_eq!(findings(&[chain("accept"), some.clone()]), 0);
        assert_eq!(findings(&[chain("drop"), some]), 1);
        assert_eq!(findings(&[chain("accept"), all.clone()]), 1);
        assert_eq!(findings(&[chain("drop"), accept.clone(), all]), 0);
        assert_eq!(findings(&[chain("drop"), accept]), 0);
        assert_eq!(findings(&[]), 0);
    }
}
