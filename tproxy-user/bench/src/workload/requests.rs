//! Requests per second on connections that are kept, by wrk.

use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::{Done, Sample};
use crate::{
    cpu::CpuTime,
    lane::{self, Lane},
    pace::Pace,
};

pub(super) fn run(lane: &Lane, pace: Pace, connections: usize) -> anyhow::Result<Sample> {
    let (threads, seconds, target) = (lane::cpus(), pace.seconds, Lane::target(80));
    let line = format!("wrk -t{threads} -c{connections} -d{seconds}s http://{target}/");
    let before = CpuTime::now()?;
    let output = lane.net.client.run(&line)?;
    let cpu = CpuTime::now()? - before;
    ensure!(!output.contains("Socket errors") && !output.contains("Non-2xx"), "{line}: {output}");
    let (requests, rate) = parse(&output).with_context(|| format!("{line}: {output}"))?;
    Ok(Done { units: requests, span: Duration::from_secs_f64(requests / rate), cpu }.sample())
}

/// How many requests were answered, and how many a second.
fn parse(output: &str) -> Option<(f64, f64)> {
    let requests = output.lines().find_map(|line| line.trim().split_once(" requests in "))?.0;
    let rate = output.lines().find_map(|line| line.strip_prefix("Requests/sec:"))?;
    Some((requests.parse().ok()?, rate.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_wrk_writes_is_read() {
        let output = "Running 1s test @ http://8.8.8.8/\n  2 threads and 64 connections\n  Thread Stats   Avg\n    \
                      Latency  1.1ms\n  60114 requests in 1.10s, 9.17MB read\nRequests/sec:  54649.03\n\
                      Transfer/sec:      8.34MB\n";
        assert_eq!(super::parse(output), Some((60_114.0, 54_649.03)));
        assert_eq!(super::parse("unable to connect"), None);
    }
}
