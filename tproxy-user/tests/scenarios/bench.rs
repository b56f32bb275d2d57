//! `tproxy bench`: it measures, and nothing is left of it.

use std::{
    fs::read_to_string,
    os::fd::OwnedFd,
    process::Command,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::support::*;

/// A network of namespaces and its programs take a second each to come up.
const RUN: Duration = Duration::from_secs(300);

fn bench(args: &str) -> Proc {
    let mut command = Command::new(binary());
    command.arg("bench").args(args.split_whitespace());
    Proc::start(command).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_contender_gets_figures_and_nothing_is_left_behind() {
    let json = std::env::temp_dir().join(format!("tp-bench-{}.json", tproxy_netns::random_suffix()));
    let mut run = bench(&format!(
        "--quick --rounds 1 --only nft/host,haproxy/client --workload connections,ping-pong --json {}",
        json.display()
    ));
    let programs = programs_of(&run);
    let status = run.wait(RUN).unwrap();
    assert!(status.success(), "{run}");
    assert_all_end(&programs);
    let report: serde_json::Value = serde_json::from_str(&read_to_string(&json).unwrap()).unwrap();
    std::fs::remove_file(&json).unwrap();
    let samples = report["samples"].as_array().unwrap();
    for contender in ["plain", "nft/host", "haproxy/client"] {
        for (workload, metric) in [("connections", "rate"), ("connections", "cpu"), ("ping-pong", "p50")] {
            let is = |sample: &&serde_json::Value| {
                (&sample["workload"], &sample["contender"], &sample["metric"])
                    == (&workload.into(), &contender.into(), &metric.into())
            };
            let value = samples.iter().find(is).and_then(|sample| sample["value"].as_f64());
            assert!(
                value.is_some_and(|value| value > 0.0),
                "{workload}, {contender}, {metric}: {value:?}\n{run}"
            );
        }
        assert!(run.lines().iter().any(|line| line.trim_start().starts_with(contender)), "{run}");
    }
}

#[test]
fn a_kill_takes_everything_with_it() {
    let mut run = bench("--quick --rounds 1000 --only haproxy/host --workload connections");
    let programs = programs_of(&run);
    run.kill9();
    assert_all_end(&programs);
}

#[test]
fn it_says_what_there_is_and_what_does_not_exist() {
    let mut run = bench("--list");
    assert!(run.wait(PATIENCE).unwrap().success());
    for word in ["iperf3", "sk_assign/client", "bulk-8-down"] {
        assert!(run.lines().iter().any(|line| line.contains(word)), "{word}\n{run}");
    }
    let mut run = bench("--only squid");
    assert_eq!(run.wait(PATIENCE).unwrap().code(), Some(1), "{run}");
    assert!(run.lines()[0].contains("'squid'"), "{run}");
}

/// All programs under `run`, as soon as HAProxy is one of them.
fn programs_of(run: &Proc) -> Vec<OwnedFd> {
    let deadline = Instant::now() + RUN;
    loop {
        let pids = descendants(run.pid());
        let is_haproxy =
            |pid: &u32| read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "haproxy\n");
        if pids.iter().any(is_haproxy) {
            let open = |pid| pidfd_open(Pid::from_raw(pid as i32)?, PidfdFlags::empty()).ok();
            return pids.into_iter().filter_map(open).collect();
        }
        assert!(Instant::now() < deadline, "no HAProxy was started\n{run}");
    }
}

fn descendants(pid: u32) -> Vec<u32> {
    let children = read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    children.flat_map(|child| [vec![child], descendants(child)].concat()).collect()
}

#[track_caller]
fn assert_all_end(programs: &[OwnedFd]) {
    assert!(programs.len() > 4, "the benchmark, nginx, iperf3, HAProxy and what keeps them apart");
    let limit = Timespec::try_from(PATIENCE).expect("seconds");
    for program in programs {
        let ended = poll(&mut [PollFd::new(program, PollFlags::IN)], Some(&limit));
        assert!(matches!(ended, Ok(1)), "a program is still running");
    }
}
