//! Whether what came is what is shown.

use std::sync::LazyLock;

use regex::Regex;

/// What is another at every run, and what is written in its place before lines are compared.
const VOLATILE: &[(&str, &str)] = &[
    // A log line's time stamp, which pages leave out.
    (r"^\d{4}-\d\d-\d\dT\S+Z +(ERROR|WARN|INFO|DEBUG) ", "$1 "),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
    (r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d [A-Z]+ \d{4}", "DATE"),
    // Ports of the kernel's choice (net.ipv4.ip_local_port_range); those that a page chooses are lower.
    (r"(\d\.\d+|\]):(3[2-9]\d{3}|[4-6]\d{4})\b", "$1:PORT"),
    (r"\b\d+\.\d+(ns|µs|ms|s)\b", "DURATION"),
    // Numbers of flows, which depend on the worker.
    (r"^ *\d+ +(tcp|udp) ", "N $1 "),
    (r#""id": \d+"#, "\"id\": N"),
    (r#""age_seconds": \d+\.\d+"#, "age_seconds: N"),
    (r"^(tproxy_\w+_seconds_sum) \S+", "$1 N"),
    (r"\b(after|Query time:) \d+ (ms|msec|milliseconds)\b", "$1 DURATION"),
    (r"\b(pid|id|prog|worker) \d+\b", "$1 N"),
    // Names of the kernel's or of $RANDOM's choice.
    (r"^\d+: (type 11|netns) ", "N: $1 "),
    (r"\bnetns_ino \d+", "netns_ino N"),
    (r"(/sys/fs/bpf/tproxy|/run/tproxy)/\d+", "$1/N"),
    (r"\btp\d+-", "tpN-"),
    // ARP, neighbour discovery.
    (r"\b(pass_other_protocol|pass_not_for_us)=\d+ ", ""),
    // How many segments a few bytes make, acknowledgements included.
    (r"\b(steer_socket_owned|pass_own_mark)=\d+", "$1=N"),
    (r" +", " "),
];

fn stable(line: &str) -> String {
    static PATTERNS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        let compile = |&(pattern, instead)| (Regex::new(pattern).expect(pattern), instead);
        VOLATILE.iter().map(compile).collect()
    });
    let mut line = line.trim_end().to_owned();
    for (pattern, instead) in PATTERNS.iter() {
        line = pattern.replace_all(&line, *instead).into_owned();
    }
    line
}

/// Whether a line is what is shown; `…` stands for anything.
pub(crate) fn same_line(shown: &str, came: &str) -> bool {
    let (shown, came) = (stable(shown), stable(came));
    let parts: Vec<_> = shown.split('…').map(regex::escape).collect();
    Regex::new(&format!("^{}$", parts.join(".*"))).is_ok_and(|pattern| pattern.is_match(&came))
}

/// Whether all lines are what is shown, in order; `…` alone stands for any number of lines.
pub(crate) fn same(shown: &[String], came: &[String]) -> bool {
    let blank = came.iter().rev().take_while(|line| line.trim().is_empty()).count();
    let came = &came[..came.len() - blank];
    match (shown.split_first(), came.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "…" => {
            (0..=came.len()).any(|skipped| same(rest, &came[skipped..]))
        }
        (Some((first, rest)), Some((line, lines))) => same_line(first, line) && same(rest, lines),
        _ => false,
    }
}

/// Takes the lines that are shown out of those that came, in whatever order; gives the first that is missing.
pub(crate) fn take<'a>(shown: &'a [String], came: &mut Vec<String>) -> Result<(), &'a str> {
    for line in shown {
        let found = came.iter().position(|came| same_line(line, came)).ok_or(line.as_str())?;
        came.remove(found);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_is_another_at_every_run_is_the_same() {
        for (shown, came) in [
            (
                "INFO accepted client=10.1.0.2:45672 dst=8.8.8.8:80 duration=5.1ms",
                "2026-11-22T23:04:48.314210Z  INFO accepted client=10.1.0.2:33218 dst=8.8.8.8:80 duration=11.75ms",
            ),
            ("client=[fd00:1::2]:45672", "client=[fd00:1::2]:60999"),
            ("2026-11-23T06:14:44.998Z tcp", "2026-11-28T01:02:03.004Z tcp"),
            (";; WHEN: Mon Nov 23 05:09:26 UTC 2026", ";; WHEN: Sat Nov 28 02:00:00 UTC 2026"),
            ("'tp20920-gateway' (pid 12)", "'tp1-gateway' (pid 3)"),
            ("port 80 after 0 ms: no", "port 80 after 12 ms: no"),
            ("a  b ", "a b"),
            ("limit=…, of …", "limit=20000, of 4"),
        ] {
            assert!(same_line(shown, came), "{shown}\n{came}");
        }
    }

    #[test]
    fn what_is_wrong_is_another() {
        for (shown, came) in [
            ("dst=8.8.8.8:80", "dst=8.8.8.8:81"),
            ("client=10.1.0.2:45672", "client=10.1.0.3:45672"),
            ("client=10.1.0.2:45672", "client=10.1.0.2:5555"),
            ("limit=30s", "limit=10s"),
            ("bytes_up=71", "bytes_up=72"),
            ("a…b", "abc"),
            ("", "a"),
        ] {
            assert!(!same_line(shown, came), "{shown}\n{came}");
        }
    }

    #[test]
    fn lines_are_complete_and_in_order_unless_they_are_left_out() {
        let came = lines("a\nb\nc\nd");
        for (shown, right) in [("a\nb\nc\nd", true), ("a\n…\nd", true), ("…\nb\n…", true), ("…", true)]
        {
            assert_eq!(same(&lines(shown), &came), right, "{shown}");
        }
        for shown in ["a\nb\nc", "b\na\nc\nd", "a\n…\nc", "", "a\nb\nc\nd\ne"] {
            assert!(!same(&lines(shown), &came), "{shown}");
        }
    }

    #[test]
    fn lines_of_a_log_are_taken_once() {
        let mut came = lines("a\nb\na\nc");
        assert_eq!(take(&lines("b\na"), &mut came), Ok(()));
        assert_eq!(came, ["a", "c"]);
        assert_eq!(take(&lines("a\na"), &mut came), Err("a"));
    }
}
