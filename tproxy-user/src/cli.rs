//! The command line: flags, checked, become a [`Config`].

mod values;

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use rustix::process::{Resource, Rlimit, getrlimit};
use tproxy_common::abi::MAX_WORKERS;

use crate::{
    bench,
    config::{Action, Config, Nat, Protocols, Rule, Scope, SessionLimits, Source, Steer, Timeouts},
    logging::Format,
    mark::Mark,
    send,
};

/// UDP sessions at most where descriptors set no lower limit: what each takes of kernel memory adds up.
const MOST_SESSIONS: usize = 65_536;

/// Steers TCP connections and UDP datagrams to arbitrary destinations into user space, by eBPF instead of iptables.
#[derive(Debug, Parser)]
#[command(name = "tproxy", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Intercept connections until SIGINT or SIGTERM
    #[command(
        after_long_help = "Example:\n  tproxy run --scope forwarded --interface eth1 --to 0.0.0.0/0 --port 80,443 --action direct"
    )]
    Run(Box<Run>),
    /// Undo what killed instances left in this network namespace
    #[command(after_long_help = "Example:\n  tproxy cleanup")]
    Cleanup,
    /// Send one UDP datagram from an address that need not be this host's
    #[command(after_long_help = "Example:\n  tproxy send --from 8.8.8.8:8080 --to 10.0.0.2:9999 'hello'")]
    Send(send::Datagram),
    /// Measure what interception costs on this machine, by us and by others (root)
    #[command(
        after_long_help = "Example:\n  tproxy bench --quick --only sk_lookup,haproxy --html bench.html"
    )]
    Bench(bench::Args),
    /// The workers of `run` alone, for the benchmark
    #[command(hide = true)]
    BenchRelay(Box<Run>),
    /// A relay of datagrams with a system call for each, for the benchmark
    #[command(hide = true)]
    BenchSingly(Box<Run>),
    /// A hot path by itself, for counting its instructions
    #[command(hide = true)]
    BenchHotPath(bench::HotPathArgs),
    /// `run` with many rules, for the benchmark
    #[command(hide = true)]
    BenchMany(Box<bench::Many>),
}

/// `tproxy run`
#[derive(Debug, Args)]
pub struct Run {
    /// Which traffic the rule looks at
    #[arg(long)]
    scope: ScopeArg,
    /// Which protocols the rule looks at
    #[arg(long, value_name = "PROTOCOL", default_value = "both")]
    proto: Protocols,
    /// Interface that packets arrive by (forwarded: required) or leave by (outbound; default: all with a default or
    /// connected route). Repeatable
    #[arg(long, value_name = "NAME")]
    interface: Vec<String>,
    /// Destination prefix or address (default: any; 0.0.0.0/0 is all of IPv4, ::/0 all of IPv6). Repeatable
    #[arg(long, value_name = "PREFIX", value_parser = values::prefix)]
    to: Vec<IpNet>,
    /// Source prefix or address (default: any). Repeatable
    #[arg(long, value_name = "PREFIX", value_parser = values::prefix)]
    from: Vec<IpNet>,
    /// Destination prefix or address to leave out. Repeatable
    #[arg(long, value_name = "PREFIX", value_parser = values::prefix)]
    except: Vec<IpNet>,
    /// Destination ports, such as 80,443,8000-8999 (default: any)
    #[arg(long, value_name = "PORTS", value_delimiter = ',', value_parser = values::ports)]
    port: Vec<RangeInclusive<u16>>,
    /// User id of the sending process, as a number (outbound). Repeatable
    #[arg(long)]
    uid: Vec<u32>,
    /// cgroup v2 directory of the sending process, or one above it (outbound). Repeatable
    #[arg(long, value_name = "PATH")]
    cgroup: Vec<PathBuf>,
    /// What becomes of a flow: direct, upstream=ADDR:PORT, respond=TEXT, reject, drop or pass
    ///
    /// direct              relay it to its original destination
    /// upstream=ADDR:PORT  relay it to this address
    /// respond=TEXT        answer it: an HTTP request with HTTP, a datagram with TEXT, anything else with TEXT on a line
    /// reject              refuse it (RST, or ICMP port unreachable)
    /// drop                discard its packets without an answer
    /// pass                leave it alone
    #[arg(long, value_parser = values::action, verbatim_doc_comment)]
    action: Action,
    /// Whose address the upstream sees (direct and upstream=)
    #[arg(long, default_value = "host")]
    source: Source,
    /// Which upstream socket a client's UDP datagrams leave by (action direct; with upstream= always per destination)
    #[arg(long, default_value = "endpoint-independent")]
    nat: Nat,
    /// Who picks the socket of a steered packet
    #[arg(long, default_value = "sk_lookup")]
    steer: Steer,
    /// The bits of the packet mark this instance uses: VALUE marks what it steers, VALUE and one more bit of MASK what
    /// its own sockets send
    #[arg(long, value_name = "VALUE/MASK", default_value_t = Mark::DEFAULT)]
    mark: Mark,
    /// Number of the routing table this instance uses; it must be empty
    #[arg(long, default_value_t = 29_808)]
    table: u32,
    /// Preference of this instance's routing rules (ip rule); instances may share one
    #[arg(long, default_value_t = 100)]
    priority: u32,
    /// Worker threads (default: one per CPU)
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// How long an upstream may take to accept a connection
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::duration)]
    connect_timeout: Duration,
    /// How long a connection may carry no byte (RFC 5382 asks a NAT for at least 2h4m)
    #[arg(long, value_name = "TIME", default_value = "2h4m", value_parser = values::duration)]
    idle_timeout: Duration,
    /// How long a UDP session may carry no datagram, as long as only one side has sent
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration)]
    udp_timeout: Duration,
    /// How long a UDP session may carry no datagram, once both sides have sent
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = values::duration)]
    udp_stream_timeout: Duration,
    /// Most UDP sessions at once; each takes two descriptors (default: as many as a quarter of the descriptors allows)
    #[arg(long, value_name = "N")]
    udp_sessions: Option<usize>,
    /// Most UDP sessions at once of one client address (default: a quarter of --udp-sessions)
    #[arg(long, value_name = "N")]
    udp_sessions_per_client: Option<usize>,
    /// How long live connections may go on after SIGINT or SIGTERM; a second signal ends them at once
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration)]
    drain_timeout: Duration,
    /// How log lines are written to stderr
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,
    /// Log more: -v for details, -vv also for what the eBPF programs say
    #[arg(short, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScopeArg {
    /// Connections that arrive by --interface for addresses that are not this host's
    Forwarded,
    /// Connections that processes of this host open
    Outbound,
    /// Connections to this host's own addresses, before the application's listener sees them
    Inbound,
}

/// Flags that do not go together. The text names them and says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Contradiction(String);

impl Run {
    /// Checks the flags against each other.
    ///
    /// # Errors
    /// [`Contradiction`]
    pub fn into_config(self) -> Result<Config, Contradiction> {
        self.check()?;
        let rule = Rule {
            name: "cli".into(),
            scope: match self.scope {
                ScopeArg::Forwarded => Scope::Forwarded,
                ScopeArg::Outbound => Scope::Outbound,
                ScopeArg::Inbound => Scope::Inbound,
            },
            protocols: self.proto,
            interfaces: self.interface,
            from: self.from,
            to: self.to,
            except: self.except,
            ports: self.port,
            uids: self.uid,
            cgroups: self.cgroup,
            action: self.action,
            source: self.source,
            nat: self.nat,
        };
        let total = self.udp_sessions.unwrap_or_else(default_sessions);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Config {
            rules: vec![rule],
            mark: self.mark,
            table: self.table,
            priority: self.priority,
            steer: self.steer,
            workers: self.workers.unwrap_or(cpus).min(MAX_WORKERS as usize),
            timeouts: Timeouts {
                connect: self.connect_timeout,
                idle: self.idle_timeout,
                drain: self.drain_timeout,
                udp: self.udp_timeout,
                udp_stream: self.udp_stream_timeout,
            },
            sessions: SessionLimits {
                total,
                per_client: self.udp_sessions_per_client.unwrap_or(total.div_ceil(4)).min(total),
            },
        })
    }

    fn check(&self) -> Result<(), Contradiction> {
        let refuse = |text: &str| Err(Contradiction(text.to_owned()));
        match self.scope {
            ScopeArg::Forwarded if self.interface.is_empty() => {
                return refuse(
                    "--scope forwarded needs --interface: name the interface that the clients' packets arrive by",
                );
            }
            ScopeArg::Forwarded if self.interface.iter().any(|name| name == "lo") => {
                return refuse(
                    "--interface lo has no meaning in --scope forwarded, since nothing is forwarded from there: name another, or use --scope outbound",
                );
            }
            ScopeArg::Inbound if !self.interface.is_empty() => {
                return refuse(
                    "--interface has no meaning in --scope inbound, which takes connections from every interface: leave it out",
                );
            }
            ScopeArg::Inbound if self.source == Source::ClientPort => {
                return refuse(
                    "--source client-port is impossible in --scope inbound, where the client's own connection has that address and port: use --source client",
                );
            }
            ScopeArg::Outbound if self.source != Source::Host => {
                return refuse(
                    "--source client has no meaning in --scope outbound, where the client is this host: leave it out",
                );
            }
            _ => {}
        }
        let names_sender = !self.uid.is_empty() || !self.cgroup.is_empty();
        if names_sender && !matches!(self.scope, ScopeArg::Outbound) {
            return refuse(
                "--uid and --cgroup are about the sending process, which scopes forwarded and inbound do not know: use them with --scope outbound",
            );
        }
        let connects = matches!(self.action, Action::Direct | Action::Upstream(_));
        if self.source != Source::Host && !connects {
            return refuse(
                "--source is about the connection to the upstream: use it with --action direct or upstream=",
            );
        }
        if !share_a_family(&self.from, &self.to) {
            return refuse(
                "--from and --to have no address family in common, so no packet can match both: give both in IPv4, or both in IPv6",
            );
        }
        let families =
            |nets: &[IpNet], v4| nets.is_empty() || nets.iter().any(|net| matches!(net, IpNet::V4(_)) == v4);
        if let Action::Upstream(addr) = &self.action {
            let other = !addr.is_ipv4();
            if self.source != Source::Host && !families(&self.to, !other) {
                return refuse(
                    "--source client needs an upstream of the clients' address family: give upstream= and --to in the same one",
                );
            }
        }
        if self.udp_sessions == Some(0) || self.udp_sessions_per_client == Some(0) {
            return refuse("--udp-sessions and --udp-sessions-per-client must be at least 1");
        }
        let speaks_udp = self.proto != Protocols::Tcp;
        if !speaks_udp && self.nat != Nat::default() {
            return refuse("--nat is about UDP: leave it out, or use --proto udp or both");
        }
        if !(1..=MAX_WORKERS as usize).contains(&self.workers.unwrap_or(1)) {
            return refuse("--workers must be between 1 and 1024");
        }
        if matches!(self.table, 0 | 253..=255) {
            return refuse(
                "--table must not be 0, 253, 254 or 255, which the kernel uses itself: choose another number",
            );
        }
        if !(1..32_766).contains(&self.priority) {
            return refuse(
                "--priority must be between 1 and 32765, after the kernel's table local and before main",
            );
        }
        Ok(())
    }
}

/// Half of the descriptors for UDP, two for each session. The rest is for connections.
fn default_sessions() -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    maximum.map_or(MOST_SESSIONS, |maximum| (maximum as usize / 4).clamp(1, MOST_SESSIONS))
}

fn share_a_family(from: &[IpNet], to: &[IpNet]) -> bool {
    from.is_empty()
        || to.is_empty()
        || from.iter().any(|source| {
            to.iter().any(|dest| {
                matches!((source, dest), (IpNet::V4(_), IpNet::V4(_)) | (IpNet::V6(_), IpNet::V6(_)))
            })
        })
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
