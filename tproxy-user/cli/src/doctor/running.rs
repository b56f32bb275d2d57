//! What an instance that runs says of itself.

use std::time::Duration;

use hyper::Method;
use tokio::time::timeout;
use tproxy::host::control_socket;

use super::{Finding, routing::INSTANCES};
use crate::control::{Status, client::Client};

const ARRIVALS: &str = "arrivals";

/// For an instance to answer, which it does at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is missing of what its rules need, and what does not arrive. Nothing, of one that nobody can ask.
pub(super) fn examine(pid: u32) -> Vec<Finding> {
    let Some(name) = control_socket::of_process(pid) else { return Vec::new() };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return vec![Finding::unknown(INSTANCES, &error)],
    };
    let client = Client::new(Some(name));
    let asked = async { timeout(PATIENCE, client.ask::<Status>(Method::GET, "/status")).await };
    match runtime.block_on(asked) {
        Ok(Ok(status)) => {
            let missing = status.missing.iter().map(|error| missing(pid, error));
            missing.chain(status.lost.iter().map(|lost| self::lost(pid, lost))).collect()
        }
        // It is of another version, or about to end.
        Ok(Err(_)) => Vec::new(),
        Err(_elapsed) => vec![Finding::warn(
            INSTANCES,
            format!("pid {pid} does not answer"),
            "new flows that its rules select meet what its on_exit says",
            format!("kill -CONT {pid}, if somebody stopped it; otherwise restart it"),
        )],
    }
}

fn lost(pid: u32, lost: &str) -> Finding {
    Finding::warn(
        ARRIVALS,
        format!("pid {pid}: {lost}"),
        "these flows neither arrive nor pass",
        "what the line names; tproxy status shows when something arrives again",
    )
}

fn missing(pid: u32, error: &str) -> Finding {
    Finding::warn(
        INSTANCES,
        format!("pid {pid} lacks something that its rules need: {error}"),
        "some of the flows that its rules select get by",
        "what the error says; it is tried again until it succeeds, and `tproxy status` tells when",
    )
}
