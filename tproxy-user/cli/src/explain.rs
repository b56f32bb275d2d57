//! `tproxy explain`: what becomes of a flow, and why, step by step.
//!
//! Where an instance runs, its own program is asked, over the maps that it has, with a packet that does not exist; nothing
//! of that is counted or remembered. Where none does, the same policy is asked about the rules that are given.

mod packet;
mod running;
mod steps;
mod way;

use std::{fmt, net::SocketAddr, path::PathBuf};

use serde::Serialize;
use tproxy_common::{
    flow::{Flow, Protocol, Tuple},
    rule::{RuleIndex, Scope},
    verdict::Reason,
};

use tproxy::{
    config::{Config, Rule},
    datapath::running::RunningError,
    flows::{FlowProtocol, FlowScope},
    host::{
        Direction, HostError, Standing,
        links::{self, Link},
        local_table::{self, LocalTable},
        on_record,
    },
    plan::Surroundings,
    policy::{Cgroup, CgroupError, Compiled, HostLookups},
};

/// `tproxy explain`
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Of the flow
    protocol: FlowProtocol,
    /// Where it comes from: ADDR:PORT
    #[arg(value_parser = endpoint)]
    source: SocketAddr,
    /// Where it goes to: ADDR:PORT
    #[arg(value_parser = endpoint)]
    destination: SocketAddr,
    /// Interface that its packets come in by; or go out by, in scope outbound
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Where it is seen (default: by its addresses, outbound with --uid or --cgroup)
    #[arg(long)]
    scope: Option<FlowScope>,
    /// User id of the sending process (outbound; default: 0)
    #[arg(long)]
    uid: Option<u32>,
    /// cgroup of the sending process, which explain joins for the moment (outbound; default: its own)
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Flags of `tproxy run`: what these would do, in place of the instance that runs
    #[arg(last = true, value_name = "FLAGS OF RUN")]
    pub run: Vec<String>,
}

fn endpoint(text: &str) -> Result<SocketAddr, String> {
    let addr: SocketAddr = text
        .parse()
        .map_err(|_| "write ADDR:PORT, such as 10.0.0.5:5555 or [2001:db8::5]:5555".to_owned())?;
    Ok(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
}

/// Why there is nothing to explain.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// Of two families.
    #[error("{0} and {1} are of different families, and no flow goes from one to the other")]
    Families(SocketAddr, SocketAddr),
    /// Scopes forwarded and outbound are about interfaces.
    #[error(
        "which interface? name the one that its packets come in by (or, in scope outbound, go out by): --interface NAME"
    )]
    WhichInterface,
    /// The interface is not there.
    #[error("interface '{0}' does not exist; `ip link` shows those that do")]
    NoSuchInterface(String),
    /// Only the kernel knows who sends a packet, and only at egress.
    #[error(
        "--uid and --cgroup are about the sending process, which only scope outbound knows: leave out --scope, or them"
    )]
    Sender,
    /// There are no rules to ask.
    #[error(
        "no tproxy runs in this network namespace; to ask about rules, give the flags of run: tproxy explain … -- --scope …"
    )]
    NothingRuns,
    /// The host did not answer.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The running instance did not answer.
    #[error(transparent)]
    Running(#[from] RunningError),
    /// No cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// A flow, and where its first packet is seen.
struct Case {
    scope: Scope,
    /// None in scope `inbound` where none was named: its rules do not ask for it.
    link: Option<Link>,
    source: SocketAddr,
    destination: SocketAddr,
    flow: Flow,
    /// The sender's cgroup and those above it, from the deepest up.
    sender: Vec<Cgroup>,
}

impl Case {
    fn hook(&self) -> Option<Direction> {
        match self.scope {
            Scope::Forwarded => Some(Direction::Ingress),
            Scope::Outbound => Some(Direction::Egress),
            Scope::Inbound => None,
        }
    }
}

/// What becomes of a flow, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Who was asked.
    pub asked: String,
    /// Where the flow is seen.
    pub scope: FlowScope,
    /// How the verdict comes about, in order.
    pub steps: Vec<ExplainStep>,
    /// `steer`, `pass`, `reject` or `drop`.
    pub verdict: &'static str,
    /// The name of the counter.
    pub reason: &'static str,
    /// What the reason means.
    pub meaning: &'static str,
    /// The rule that decides, by its position from 0 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleIndex>,
    /// Its name, where the rules are known by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The worker whose listener would receive the flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
}

/// One thing that was asked on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainStep {
    /// What was asked about.
    pub step: &'static str,
    /// What was found.
    pub found: String,
}

impl Explanation {
    fn new(
        asked: String,
        case: &Case,
        steps: Vec<ExplainStep>,
        reason: Reason,
        rule: Option<RuleIndex>,
    ) -> Self {
        Self {
            asked,
            scope: case.scope.into(),
            steps,
            // Their names begin so.
            verdict: reason.name().split('_').next().unwrap_or_default(),
            reason: reason.name(),
            meaning: reason.meaning(),
            rule,
            name: None,
            worker: None,
        }
    }

    fn steers(&self) -> bool {
        self.verdict == "steer"
    }

    fn passes(&self) -> bool {
        self.verdict == "pass"
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<12} {}", "asked", self.asked)?;
        writeln!(f, "{:<12} {}", "scope", self.scope.name())?;
        for ExplainStep { step, found } in &self.steps {
            writeln!(f, "{step:<12} {found}")?;
        }
        write!(f, "{:<12} {}, by reason {}", "verdict", self.verdict, self.reason)?;
        if let Some(rule) = self.rule {
            write!(f, ", by rule {rule}")?;
        }
        if let Some(name) = &self.name {
            write!(f, " '{name}'")?;
        }
        if let Some(worker) = self.worker {
            write!(f, ", to worker {worker}")?;
        }
        writeln!(f, "\n{:<12} {}", "", self.meaning)
    }
}

/// Asks the instances that run in the calling thread's network namespace, in the order in which their programs see a
/// packet, until one does not let it pass; or `config`, if there is one.
///
/// # Errors
/// [`ExplainError`]
pub fn explain(args: &Args, config: Option<&Config>) -> Result<Vec<Explanation>, ExplainError> {
    let links = links::snapshot()?;
    let table = config.map_or(0, |config| config.table);
    let local = LocalTable::load(table)?;
    let case = case(args, &links, &local)?;
    if let Some(config) = config {
        let surroundings =
            Surroundings { links, routed: local_table::routed_interfaces()?, families: Vec::new() };
        let mut explanation = of_rules(&case, &config.rules, &surroundings, &local)?;
        if let Some(rule) = explanation.rule.filter(|_| explanation.steers()) {
            let rule = &config.rules[rule as usize];
            explanation.steps.extend(way::step(&case, rule, config.mark, config.priority));
        }
        return Ok(vec![explanation]);
    }
    let alive: Vec<_> =
        on_record()?.into_iter().filter(|instance| instance.standing == Standing::Lives).collect();
    if alive.is_empty() {
        return Err(ExplainError::NothingRuns);
    }
    if let Some(path) = &args.cgroup {
        Cgroup::join(path)?;
    }
    running::explain(&case, &alive)
}

/// What the rules say, when only they are known.
fn of_rules(
    case: &Case,
    rules: &[Rule],
    surroundings: &Surroundings,
    local: &LocalTable,
) -> Result<Explanation, ExplainError> {
    let mut cgroups = Vec::new();
    for rule in rules {
        let found: Result<Vec<_>, _> = rule.selector.cgroups.iter().map(|path| Cgroup::find(path)).collect();
        cgroups.push(found?.into_iter().flat_map(|found| found.cgroups).collect());
    }
    let compiled = Compiled::new(rules, |reach| surroundings.limit(reach), &cgroups);
    let lookups = HostLookups {
        compiled: &compiled,
        is_host_address: &|addr| local.contains((*addr).into()),
        is_publishing: false,
        sender_cgroups: &case.sender,
    };
    let name = |rule: RuleIndex| rules.get(rule as usize).map(|rule| rule.name.as_ref().to_owned());
    let (steps, verdict, rule) = steps::walk(case, &lookups, &name);
    let mut explanation = Explanation::new(
        "the rules given, as if an instance had them".into(),
        case,
        steps,
        verdict.reason(),
        rule,
    );
    explanation.name = rule.and_then(name);
    Ok(explanation)
}

fn case(args: &Args, links: &[Link], local: &LocalTable) -> Result<Case, ExplainError> {
    let (source, destination) = (args.source, args.destination);
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(ExplainError::Families(source, destination));
    }
    let has_sender = args.uid.is_some() || args.cgroup.is_some();
    let scope = match args.scope {
        Some(FlowScope::Forwarded) => Scope::Forwarded,
        Some(FlowScope::Outbound) => Scope::Outbound,
        Some(FlowScope::Inbound) => Scope::Inbound,
        None if has_sender => Scope::Outbound,
        None if local.contains(destination.ip()) => Scope::Inbound,
        None if local.contains(source.ip()) => Scope::Outbound,
        None => Scope::Forwarded,
    };
    if has_sender && scope != Scope::Outbound {
        return Err(ExplainError::Sender);
    }
    let link = match &args.interface {
        Some(name) => {
            let named = links.iter().find(|link| link.name == *name);
            Some(named.cloned().ok_or_else(|| ExplainError::NoSuchInterface(name.clone()))?)
        }
        None if scope == Scope::Inbound => None,
        None => return Err(ExplainError::WhichInterface),
    };
    let sender = match &args.cgroup {
        _ if scope != Scope::Outbound => None,
        Some(path) => Some(Cgroup::resolve(path)?),
        None => Cgroup::of_this_process()?,
    };
    let flow = Flow {
        protocol: match args.protocol {
            FlowProtocol::Tcp => Protocol::Tcp,
            FlowProtocol::Udp => Protocol::Udp,
        },
        tuple: Tuple {
            src: source.ip().into(),
            dst: destination.ip().into(),
            sport: source.port().to_be_bytes(),
            dport: destination.port().to_be_bytes(),
        },
        ifindex: link.as_ref().map_or(0, |link| link.index),
        uid: args.uid.unwrap_or(0),
    };
    let sender = sender.iter().flat_map(Cgroup::lineage).collect();
    Ok(Case { scope, link, source, destination, flow, sender })
}

#[cfg(test)]
mod tests;
