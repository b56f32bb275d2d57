//! Where the figures come from.

use std::fs;

use serde::Serialize;

use super::{args::Plan, lane, tools};

/// Machine, kernel and versions.
#[derive(Debug, Serialize)]
pub(super) struct Environment {
    pub(super) kernel: String,
    pub(super) cpu: String,
    pub(super) cpus: usize,
    pub(super) tproxy: &'static str,
    pub(super) build: &'static str,
    pub(super) tools: Vec<(String, String)>,
    pub(super) rounds: usize,
    pub(super) quick: bool,
    /// The contenders that were asked for, as they were named; empty: all.
    pub(super) only: String,
}

impl Environment {
    pub(super) fn look(plan: &Plan) -> Self {
        let uname = rustix::system::uname();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            kernel: format!(
                "Linux {} {}",
                uname.release().to_string_lossy(),
                uname.machine().to_string_lossy()
            ),
            cpu: model.map_or("unknown", |(_, model)| model.trim()).to_owned(),
            cpus: lane::cpus(),
            tproxy: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            tools: tools::versions(plan),
            rounds: plan.pace.rounds,
            quick: plan.pace.is_quick(),
            only: plan.only.join(","),
        }
    }
}
