//! What an instance that runs says of itself.

use std::{io, time::Duration};

use hyper::Method;
use tokio::time::timeout;
use tproxy::host::control_socket;

use super::{Finding, routing::INSTANCES};
use crate::control::{Status, client::Client};

/// For an instance to answer, which it does at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is missing of what its rules need. Nothing, of one that nobody can ask.
pub(super) fn examine(pid: u32) -> Vec<Finding> {
    match asked(pid) {
        Ok(status) => {
            status.into_iter().flat_map(|status| status.missing).map(|error| missing(pid, &error)).collect()
        }
        Err(error) => vec![Finding::unknown(INSTANCES, &error)],
    }
}

/// The status of the instance that is this process; which name it answers by, only its answer tells.
fn asked(pid: u32) -> io::Result<Option<Status>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(async {
        for name in control_socket::living() {
            let client = Client::new(Some(name));
            if let Ok(Ok(status)) = timeout(PATIENCE, client.ask::<Status>(Method::GET, "/status")).await
                && status.pid == pid
            {
                return Some(status);
            }
        }
        None
    }))
}

fn missing(pid: u32, error: &str) -> Finding {
    Finding::warn(
        INSTANCES,
        format!("pid {pid} lacks something that its rules need: {error}"),
        "some of the flows that its rules select get by",
        "what the error says; it is tried again until it succeeds, and `tproxy status` tells when",
    )
}
