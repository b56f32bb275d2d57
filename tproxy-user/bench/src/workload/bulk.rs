//! Throughput, by iperf3.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use super::{Done, Sample};
use crate::{cpu::CpuTime, lane::Lane, pace::Pace};

/// Where the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// To the server.
    Up,
    /// To the client.
    Down,
}

pub(super) fn run(lane: &Lane, pace: Pace, flows: usize, direction: Direction) -> anyhow::Result<Sample> {
    let reverse = if direction == Direction::Down { "--reverse" } else { "" };
    let target = Lane::target(5201).ip();
    let line =
        format!("iperf3 --json --client {target} --parallel {flows} --time {} {reverse}", pace.seconds);
    let before = CpuTime::now()?;
    let output = lane.net.client.run(&line)?;
    let cpu = CpuTime::now()? - before;
    let (bytes, seconds) = parse(&output).with_context(|| format!("{line}: {output}"))?;
    Ok(Done { units: bytes / 1e9, span: Duration::from_secs_f64(seconds), cpu }.sample())
}

/// Bytes that arrived, and in how many seconds.
fn parse(output: &str) -> Option<(f64, f64)> {
    let report: Value = serde_json::from_str(output).ok()?;
    let received = report.get("end")?.get("sum_received")?;
    Some((received.get("bytes")?.as_f64()?, received.get("seconds")?.as_f64()?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_iperf3_writes_is_read() {
        let output = r#"{"start":{},"end":{"sum_received":{"start":0,"end":1,"seconds":1.5,"bytes":3000}}}"#;
        assert_eq!(super::parse(output), Some((3000.0, 1.5)));
        assert_eq!(super::parse(r#"{"error":"unable to connect"}"#), None);
    }
}
