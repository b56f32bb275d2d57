//! `tproxy doctor`: what on this host keeps interception from working, what that breaks, and what cures it.
//!
//! Nothing is changed, but for namespaces that `--probe` makes and removes, and routing rules for the mark that are there while
//! it is tried whether steered packets arrive.

mod configuration;
pub(crate) mod firewall;
mod hooks;
mod input;
mod kernel;
mod limits;
pub(crate) mod loss;
mod modules;
mod probe;
mod routing;
mod running;

use std::{fmt, path::PathBuf};

use serde::Serialize;

use tproxy::{config::Config, host::Identity, mark::Mark};

/// `tproxy doctor`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also send TCP and UDP, IPv4 and IPv6, through an instance of its own in namespaces made for it
    #[arg(long)]
    probe: bool,
    /// Look at this configuration file too, and at what it needs; mark, table and priority are taken from it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["mark", "table", "priority"])]
    config: Option<PathBuf>,
    /// The mark that `run` is to use
    #[arg(long, value_name = "VALUE/MASK", default_value_t = Mark::DEFAULT)]
    mark: Mark,
    /// The routing table that `run` is to use
    #[arg(long, value_name = "N", default_value_t = Identity::DEFAULT.table)]
    table: u32,
    /// The preference of routing rules that `run` is to use
    #[arg(long, value_name = "N", default_value_t = Identity::DEFAULT.priority)]
    priority: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Something will not work, or not for every flow.
    Warn,
    /// tproxy does not start, or takes nothing.
    Fail,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, a word or two.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What that breaks; there unless the level is ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaks: Option<String>,
    /// The command that cures it, or what to do; there unless the level is ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), breaks: None, cure: None }
    }

    fn warn(
        check: &'static str,
        found: impl Into<String>,
        breaks: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        let (breaks, cure) = (Some(breaks.into()), Some(cure.into()));
        Self { check, level: Level::Warn, found: found.into(), breaks, cure }
    }

    fn fail(
        check: &'static str,
        found: impl Into<String>,
        breaks: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self { level: Level::Fail, ..Self::warn(check, found, breaks, cure) }
    }

    /// Something could not be looked at.
    fn unknown(check: &'static str, error: &impl fmt::Display) -> Self {
        Self::warn(check, format!("cannot tell: {error}"), "this check", "run: sudo tproxy doctor")
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<5}{:<14}{}", self.level, self.check, self.found)?;
        for (what, text) in [("breaks", &self.breaks), ("cure", &self.cure)] {
            if let Some(text) = text {
                write!(f, "\n{:19}{what}: {text}", "")?;
            }
        }
        Ok(())
    }
}

/// What the kernel shows to nobody else: without privileges, whatever is found there is found wrong.
const SEEN_WITH_PRIVILEGES: [&str; 8] = [
    kernel::HELPERS,
    kernel::PROGRAMS,
    kernel::TCX,
    kernel::DESTROYING,
    routing::INSTANCES,
    firewall::CHECK,
    input::CHECK,
    hooks::CHECK,
];

/// All that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The worst of the levels.
    pub worst: Level,
    /// In the order of the checks.
    pub findings: Vec<Finding>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        let count = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        writeln!(f, "{} ok, {} warn, {} fail", count(Level::Ok), count(Level::Warn), count(Level::Fail))
    }
}

/// Looks at everything, in the network namespace of the calling thread.
#[must_use]
pub fn examine(args: &Args) -> Report {
    let mut findings = Vec::new();
    let mut identity = Identity { mark: args.mark, table: args.table, priority: args.priority };
    let mut config = None;
    if let Some(file) = &args.config {
        let (read, found) = configuration::examine(file);
        findings.extend(found);
        config = read;
    }
    if let Some(Config { mark, table, priority, .. }) = config {
        identity = Identity { mark, table, priority };
    }
    findings.extend(kernel::examine(identity.mark));
    findings.extend(limits::examine());
    findings.extend(routing::examine(&identity));
    findings.extend(firewall::examine(identity.mark, config.as_ref()));
    findings.extend(input::examine(&identity, config.as_ref()));
    findings.extend(hooks::examine());
    if args.probe {
        findings.extend(probe::examine());
    }
    if findings.iter().any(|finding| finding.check == limits::CAPABILITIES && finding.level == Level::Fail) {
        findings.iter_mut().filter(|finding| SEEN_WITH_PRIVILEGES.contains(&finding.check)).for_each(
            |finding| {
                *finding = Finding::unknown(finding.check, &"only root sees it");
            },
        );
        findings.dedup();
    }
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    Report { worst, findings }
}
