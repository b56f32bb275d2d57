//! Programs that are not ours.

use std::{fmt::Write as _, path::Path, process::Command};

use anyhow::ensure;
use clap::ValueEnum as _;
use tproxy_netns::require_tool;

use super::{
    args::Plan,
    contender::{Contender, Way},
    workload::Workload,
};

/// The stream module, where Debian has it.
const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Its name, the Debian package, what it does here, and how it tells its version.
pub(super) struct Tool {
    name: &'static str,
    package: &'static str,
    does: &'static str,
    version: &'static str,
    needed: fn(&Plan) -> bool,
}

const TOOLS: [Tool; 9] = [
    Tool { name: "ip", package: "iproute2", does: "makes the networks", version: "-V", needed: |_| true },
    Tool {
        name: "ss",
        package: "iproute2",
        does: "shows who has a connection",
        version: "-V",
        needed: |_| true,
    },
    Tool {
        name: "unshare",
        package: "util-linux",
        does: "keeps it all apart",
        version: "--version",
        needed: |_| true,
    },
    Tool {
        name: "nginx",
        package: "nginx-light",
        does: "serves HTTP; is a contender",
        version: "-v",
        needed: |_| true,
    },
    Tool {
        name: "iperf3",
        package: "iperf3",
        does: "makes bulk load",
        version: "--version",
        needed: |_| true,
    },
    Tool {
        name: "wrk",
        package: "wrk",
        does: "makes requests",
        version: "-v",
        needed: |plan| plan.workloads.iter().any(|workload| workload.tool() == Some("wrk")),
    },
    Tool {
        name: "iptables",
        package: "iptables",
        does: "steers by TPROXY",
        version: "--version",
        needed: |plan| {
            [Way::Iptables, Way::Haproxy, Way::Nginx, Way::Singly].into_iter().any(|way| has(plan, way))
        },
    },
    Tool {
        name: "nft",
        package: "nftables",
        does: "steers by tproxy",
        version: "--version",
        needed: |plan| has(plan, Way::Nft),
    },
    Tool {
        name: "haproxy",
        package: "haproxy",
        does: "is a contender",
        version: "-v",
        needed: |plan| has(plan, Way::Haproxy),
    },
];

fn has(plan: &Plan, way: Way) -> bool {
    plan.contenders.iter().any(|contender| matches!(contender, Contender::Proxy(its, _) if *its == way))
}

/// # Errors
/// Names all that is missing for a plan, and the command that installs it.
pub(super) fn require(plan: &Plan) -> anyhow::Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "the benchmark makes network namespaces: run it as root");
    let missing = TOOLS.iter().filter(|tool| (tool.needed)(plan) && require_tool(tool.name).is_err());
    let mut packages: Vec<_> = missing.map(|tool| tool.package).collect();
    if has(plan, Way::Nginx) && !Path::new(STREAM).exists() {
        packages.push("libnginx-mod-stream");
    }
    packages.dedup();
    ensure!(
        packages.is_empty(),
        "programs are missing (`tproxy bench --list` shows which): apt-get install {}",
        packages.join(" ")
    );
    Ok(())
}

/// What is found and what is missing, and what can be measured.
pub(super) fn list() -> String {
    let mut text = String::from("Programs\n");
    for tool in &TOOLS {
        let found = version(tool).unwrap_or_else(|| format!("MISSING: apt-get install {}", tool.package));
        let _ = writeln!(text, "  {:<20} {:<28} {found}", tool.name, tool.does);
    }
    let stream =
        if Path::new(STREAM).exists() { STREAM } else { "MISSING: apt-get install libnginx-mod-stream" };
    let _ = writeln!(text, "  {:<20} {:<28} {stream}", "nginx stream module", "is a contender");
    text += "\nContenders\n";
    for contender in Contender::all() {
        let _ = writeln!(text, "  {contender:<20} {}", contender.explanation());
    }
    text += "\nWorkloads\n";
    for workload in Workload::value_variants() {
        let _ = writeln!(text, "  {:<20} {}", workload.name(), workload.explanation());
    }
    text
}

/// Names and versions of the programs that a plan needs.
pub(super) fn versions(plan: &Plan) -> Vec<(String, String)> {
    let needed = TOOLS.iter().filter(|tool| (tool.needed)(plan));
    needed.filter_map(|tool| Some((tool.name.to_owned(), version(tool)?))).collect()
}

/// The first line of what it says about its version; `None` when it is missing.
fn version(tool: &Tool) -> Option<String> {
    require_tool(tool.name).ok()?;
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(tool.name).arg(tool.version).env("PATH", path).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&said).lines().next().unwrap_or("found").trim().to_owned())
}
