//! The command line. What `tproxy run` is told is a draft of a configuration, by flags or by a file.

mod pages;

use std::path::PathBuf;

use clap::{Args, Parser};
pub use pages::{completions, man};
use tproxy::config::{Config, Flags, Mistakes};

use crate::{ask, doctor, explain, logging::Format, send, top, trace};

/// Steers TCP connections and UDP datagrams to arbitrary destinations into user space, by eBPF instead of iptables.
#[derive(Debug, Parser)]
#[command(name = "tproxy", version, max_term_width = 110, after_long_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Subcommand,
}

const EXIT_CODES: &str = "Exit codes:
  0  stopped by a signal, or done
  1  could not start, go on, or undo; one line on stderr says what and what to do
  2  the command line or the configuration file makes no sense; a line on stderr for each mistake";

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Subcommand {
    /// Intercept flows until SIGINT or SIGTERM, by one rule from flags or all rules of a file
    #[command(after_long_help = "Examples:
  tproxy run --scope forwarded --interface eth1 --to 0.0.0.0/0 --port 80,443 --action direct
  tproxy run --config /etc/tproxy.toml

--interface, --to, --from, --except, --port, --uid and --cgroup may be given several times.")]
    Run(Box<RunArgs>),
    /// Print the configuration that flags or a file make, as a file with nothing left to defaults
    #[command(after_long_help = "Examples:
  tproxy config --scope inbound --port 8080 --action direct > tproxy.toml
  tproxy config --config tproxy.toml
  tproxy config --schema > tproxy.schema.json")]
    Config(Box<ConfigArgs>),
    /// Say what is wrong with a configuration file, and what a reload of it would change, without doing so
    #[command(after_long_help = "Example:
  tproxy check /etc/tproxy.toml")]
    Check(ask::CheckArgs),
    /// Show how a running instance is, and what it has counted
    #[command(after_long_help = "Example:\n  tproxy status --json")]
    Status(ask::AskArgs),
    /// Show a running instance's rules in order, with the flows that each has decided
    #[command(after_long_help = "Example:\n  tproxy rules")]
    Rules(ask::AskArgs),
    /// Show the servers that a running instance's rules go by: state, latency, failures
    #[command(after_long_help = "Example:\n  tproxy upstreams")]
    Upstreams(ask::AskArgs),
    /// Show the live flows of a running instance
    #[command(
        after_long_help = "Example:\n  tproxy flows --proto tcp --client 10.0.0.0/8 --dst :443 --follow"
    )]
    Flows(ask::FlowsArgs),
    /// Watch a running instance: rates, rules, clients and flows, full screen
    #[command(after_long_help = "Example:\n  tproxy top")]
    Top(top::Args),
    /// End live flows: connections are reset on both sides
    #[command(after_long_help = "Example:\n  tproxy close --client 10.0.0.5")]
    Close(ask::Close),
    /// Have an instance read its configuration file again
    #[command(after_long_help = "Example:\n  tproxy reload --confirm 30s")]
    Reload(ask::Reload),
    /// Keep what `tproxy reload --confirm` brought
    #[command(after_long_help = "Example:\n  tproxy confirm")]
    Confirm(ask::Confirm),
    /// Have an instance take no new flow, and stop when the live ones have ended, as SIGTERM does
    #[command(after_long_help = "Example:\n  tproxy drain")]
    Drain(ask::Drain),
    /// Print what Prometheus is told of a running instance
    #[command(after_long_help = "Example:\n  tproxy metrics")]
    Metrics(ask::Metrics),
    /// Undo what killed instances left in this network namespace
    #[command(after_long_help = "Example:
  tproxy cleanup")]
    Cleanup,
    /// Send one UDP datagram from an address that need not be this host's
    #[command(after_long_help = "Example:\n  tproxy send --from 8.8.8.8:8080 --to 10.0.0.2:9999 'hello'")]
    Send(send::SendArgs),
    /// Measure what interception costs on this machine, by us and by others (root)
    #[command(
        after_long_help = "Example:\n  tproxy bench --quick --only sk_lookup,haproxy --html bench.html"
    )]
    Bench(tproxy_bench::Args),
    /// Say what on this host keeps interception from working, and what cures it
    #[command(
        after_long_help = "Exit code: 0 nothing is wrong, 3 warnings only, 1 something fails.\n\nExample:\n  tproxy doctor --probe"
    )]
    Doctor(doctor::Args),
    /// Say what becomes of a flow, which rule decides, and why
    #[command(
        after_long_help = "Examples:\n  tproxy explain tcp 10.0.0.5:5555 8.8.8.8:443 --interface eth1\n  tproxy explain udp 10.0.0.5:5555 8.8.8.8:53 --interface eth1 -- --scope forwarded --interface eth1 --action direct"
    )]
    Explain(explain::Args),
    /// Show what is decided about flows, live
    #[command(after_long_help = "Example:\n  tproxy trace --proto tcp --dst :443 --reason pass")]
    Trace(trace::Args),
    /// The workers of `run` alone, for the benchmark
    #[command(hide = true)]
    BenchRelay(Box<RunArgs>),
    /// A relay of datagrams with a system call for each, for the benchmark
    #[command(hide = true)]
    BenchSingly(Box<RunArgs>),
    /// `run` with many rules, for the benchmark
    #[command(hide = true)]
    BenchMany(Box<tproxy_bench::Many>),
    /// Print completions for a shell
    #[command(after_long_help = "Example:
  tproxy completions bash > /etc/bash_completion.d/tproxy")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    #[command(after_long_help = "Example:
  tproxy man /usr/local/share/man/man1")]
    Man {
        /// The directory, which has to exist
        directory: PathBuf,
    },
}

/// `tproxy run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// What to intercept.
    #[command(flatten)]
    pub flags: Flags,
    /// Read the file again when it changes, or one that it names; SIGHUP has it read again in any case
    #[arg(long, requires = "config")]
    pub watch: bool,
    /// How log lines are written to stderr
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,
    /// Log more: -v for details, -vv also for what the eBPF programs say
    #[arg(short, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// `tproxy config`
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Print the JSON schema of the file instead
    #[arg(long, exclusive = true)]
    pub schema: bool,
    /// What to print.
    #[command(flatten)]
    pub flags: Flags,
}

impl Cli {
    /// What `tproxy run` would make of these flags.
    ///
    /// # Errors
    /// [`Mistakes`], also for flags that make no sense by themselves.
    pub fn config_of_run(flags: &[String]) -> Result<Config, Mistakes> {
        let words = ["tproxy", "run"].into_iter().chain(flags.iter().map(String::as_str));
        match Self::try_parse_from(words).map_err(|error| Mistakes(vec![one_line(&error)]))?.command {
            Subcommand::Run(run) => run.flags.into_config(),
            _ => unreachable!("the command is run"),
        }
    }
}

/// clap's account of a mistake, on one line.
#[must_use]
pub fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let said = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"));
    said.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
