//! What has no effect is said, and nothing else is.

use super::*;

/// What is said of one rule, which is forwarded and rejects, after others.
#[track_caller]
fn remarks(before: &str, rule: &str) -> Vec<String> {
    let forwarded = "scope = \"forwarded\"\ninterfaces = [\"lan\"]\naction = \"reject\"\n";
    good(&format!("{before}\n[[rules]]\nname = \"r\"\n{forwarded}{rule}\n")).remarks()
}

#[track_caller]
fn says(rule: &str, what: &str) {
    let said = remarks("", rule);
    assert!(said.len() == 1 && said[0].contains(what), "{rule}: {said:?}");
}

#[test]
fn prefixes_that_are_never_intercepted() {
    for never in [
        "169.254.0.0/16",
        "169.254.169.0/24",
        "224.0.0.0/4",
        "239.1.1.1",
        "255.255.255.255",
        "0.0.0.0",
        "127.0.0.1",
        "ff00::/8",
        "ff02::1",
        "fe80::/10",
        "fe80::1",
        "::1",
        "::",
    ] {
        says(&format!("to = [\"{never}\"]"), "rule 'r': it can never match: to ");
        says(&format!("to = [\"{never}\", \"10.0.0.0/8\"]"), "some of it can never match: to ");
    }
    says("from = [\"127.0.0.0/8\"]", "it can never match: from 127.0.0.0/8 is loopback");
    for taken in ["169.254.169.254", "240.0.0.0/4", "0.0.0.0/0", "::/0", "10.0.0.0/8", "128.0.0.0/1"] {
        assert_eq!(remarks("", &format!("to = [\"{taken}\"]")), [""; 0], "{taken}");
    }
}

#[test]
fn addresses_that_are_taken_only_by_name_are_noted() {
    let notes = |rule: &str, action: &str| {
        let scope = "scope = \"outbound\"\n";
        good(&format!("[[rules]]\nname = \"r\"\n{scope}action = \"{action}\"\n{rule}\n")).notes()
    };
    for (to, why) in [
        ("169.254.169.254", "169.254.169.254/32 (link-local"),
        ("fe80::1", "fe80::1/128 (link-local"),
        ("240.240.0.1", "240.240.0.1/32 (reserved"),
        ("240.0.0.0/4", "240.0.0.0/4 (reserved"),
    ] {
        let noted = notes(&format!("to = [\"10.0.0.1\", \"{to}\"]"), "reject");
        assert_eq!(noted.len(), 1);
        assert!(noted[0].starts_with(&format!("rule 'r' takes {why}")), "{noted:?}");
        assert_eq!(notes(&format!("to = [\"{to}\"]"), "pass"), [""; 0]);
    }
    for to in ["0.0.0.0/0", "10.0.0.0/8", "169.254.0.0/16", "255.255.255.255", "::/0"] {
        assert_eq!(notes(&format!("to = [\"{to}\"]"), "reject"), [""; 0], "{to}");
    }
}

#[test]
fn rules_of_which_nothing_is_left() {
    says(
        "to = [\"10.0.0.0/8\"]\nexcept = [\"10.0.0.0/9\", \"10.128.0.0/9\"]",
        "except leaves out all of its to",
    );
    says("except = [\"0.0.0.0/0\", \"::/0\"]", "except leaves out all");
    assert_eq!(remarks("", "except = [\"0.0.0.0/0\"]"), [""; 0], "IPv6 is left");
    assert_eq!(remarks("", "to = [\"10.0.0.0/8\"]\nexcept = [\"10.0.0.0/9\"]"), [""; 0]);
    let empty = "sets.prefixes.none = []";
    let said = remarks(empty, "to = [\"@none\"]");
    assert!(said.len() == 1 && said[0].contains("while the sets in its to have no members"), "{said:?}");
    let said =
        remarks("sets.ports.none = []\nsets.prefixes.spare = [\"10.0.0.1\"]", "ports = [\"@none\", 80]");
    assert_eq!(said, ["set 'spare' is never used: no rule names it"]);
}

#[test]
fn rules_behind_one_that_takes_all_of_it() {
    let before = |rule: &str| {
        format!(
            "[[rules]]\nname = \"first\"\nscope = \"forwarded\"\ninterfaces = [\"lan\"]\naction = \"direct\"\n{rule}"
        )
    };
    for (first, second) in [
        ("", "to = [\"10.0.0.0/8\"]"),
        ("to = [\"0.0.0.0/1\", \"128.0.0.0/1\", \"::/0\"]", ""),
        ("ports = [\"1-1000\"]", "ports = [80, \"400-500\"]"),
        ("from = [\"10.0.0.0/8\"]", "from = [\"10.1.0.0/16\"]\nprotocol = \"udp\""),
        ("except = [\"10.0.0.1\"]", "except = [\"10.0.0.1\"]"),
    ] {
        let said = remarks(&before(first), second);
        assert!(
            said.len() == 1 && said[0].contains("since rule 'first' before it"),
            "{first} / {second}: {said:?}"
        );
    }
    for (first, second) in [
        ("to = [\"10.0.0.0/8\"]", ""),
        ("protocol = \"tcp\"", ""),
        ("ports = [80]", ""),
        ("ports = [80]", "ports = [80, 81]"),
        ("except = [\"10.0.0.1\"]", ""),
        ("to = [\"0.0.0.0/0\"]", ""),
    ] {
        assert_eq!(remarks(&before(first), second), [""; 0], "{first} / {second}");
    }
}

#[test]
fn what_is_this_hosts_own_or_not() {
    let own: Vec<_> =
        ["127.0.0.0/8", "192.0.2.1/32", "2001:db8::1/128"].map(|net| net.parse().unwrap()).into();
    let remarks = |scope: &str, rule: &str| {
        let interfaces = if scope == "forwarded" { "interfaces = [\"lan\"]\n" } else { "" };
        good(&format!("[[rules]]\nscope = \"{scope}\"\n{interfaces}action = \"drop\"\n{rule}"))
            .remarks_here(&own)
    };
    for (scope, rule, never) in [
        ("forwarded", "to = [\"192.0.2.1\"]", true),
        ("outbound", "to = [\"2001:db8::1\"]", true),
        ("forwarded", "to = [\"192.0.2.0/24\"]", false),
        ("forwarded", "from = [\"192.0.2.1\"]", true),
        ("outbound", "from = [\"192.0.2.1\"]", false),
        ("inbound", "to = [\"192.0.2.2\"]", true),
        ("inbound", "to = [\"192.0.2.0/24\"]", false),
        ("inbound", "", false),
    ] {
        let said = remarks(scope, rule);
        assert_eq!(said.len(), usize::from(never), "{scope} {rule}: {said:?}");
        assert!(said.iter().all(|said| said.contains("can never match")), "{said:?}");
    }
}

#[test]
fn a_list_that_is_given_and_empty_is_refused() {
    for key in ["to", "from", "ports", "interfaces", "uid", "cgroup"] {
        let errors =
            read(&format!("[[rules]]\nscope = \"outbound\"\naction = \"drop\"\n{key} = []")).unwrap_err();
        assert!(errors.to_string().contains("the list is empty"), "{key}: {errors}");
    }
    good("[[rules]]\nscope = \"outbound\"\naction = \"drop\"\nexcept = []");
}
