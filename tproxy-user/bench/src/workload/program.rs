//! What the kernel says about the run time of the tc programs while packets pass that are not ours.

use std::{fs, io};

use anyhow::{Context as _, ensure};
use tproxy::datapath;

use super::{Metric, Sample, ping_pong};
use crate::{lane::Lane, pace::Pace};

pub(super) fn run(lane: &Lane, pace: Pace) -> anyhow::Result<Sample> {
    let pid = lane.proxy.as_ref().context("plain forwarding has no programs")?.pid();
    Ok(Sample(vec![mean_run(pid, || ping_pong::run(lane, pace).map(drop))?]))
}

/// The mean of the tc programs that a process holds, while `load` lasts.
pub(super) fn mean_run(pid: u32, load: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<(Metric, f64)> {
    let _measuring = datapath::measure_run_time()?;
    let before = runs(pid)?;
    load()?;
    let after = runs(pid)?;
    let (nanoseconds, number) = (after.0 - before.0, after.1 - before.1);
    ensure!(number > 0, "no tc program ran");
    Ok((Metric::RunTime, nanoseconds as f64 * 1e-9 / number as f64))
}

/// Nanoseconds and number of runs of all tc programs that a process holds (`bpf_prog_show_fdinfo`).
fn runs(pid: u32) -> io::Result<(u64, u64)> {
    let mut total = (0, 0);
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // It may be closed since the directory was read.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        if let Some((nanoseconds, number)) = parse(&text) {
            total = (total.0 + nanoseconds, total.1 + number);
        }
    }
    Ok(total)
}

fn parse(fdinfo: &str) -> Option<(u64, u64)> {
    /// `BPF_PROG_TYPE_SCHED_CLS`
    const TC: u64 = 3;
    let field = |name| fdinfo.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    (field("prog_type:")? == TC).then(|| Some((field("run_time_ns:")?, field("run_cnt:")?)))?
}

#[cfg(test)]
mod tests {
    #[test]
    fn tc_programs_are_told_from_others() {
        let info =
            |kind| format!("pos:\t0\nflags:\t02000002\nprog_type:\t{kind}\nrun_time_ns:\t700\nrun_cnt:\t7\n");
        assert_eq!(super::parse(&info(3)), Some((700, 7)));
        assert_eq!(super::parse(&info(30)), None);
        assert_eq!(super::parse("pos:\t0\n"), None);
    }
}
