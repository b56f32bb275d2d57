//! `tproxy trace`: what running instances decide about flows, live.
//!
//! The programs tell of a decision only until the time that is written into one of their maps, which is renewed for as
//! long as this runs. So whatever ends it, nobody pays for it any more.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
    net::SocketAddr,
    os::{
        fd::AsFd as _,
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as UnixAddr, UnixListener},
    },
    time::{Duration, SystemTime},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    time::{ClockId, clock_gettime},
};
use serde::Serialize;
use tproxy_common::{
    abi::{NO_RULE, Told},
    flow::Protocol,
    rule::{RuleIndex, Scope},
    verdict::Reason,
};

use tproxy::{
    datapath::running::{Running, RunningError, Watch},
    flows::{EndpointFilter, FlowProtocol, FlowScope},
    host::{HostError, Standing, links, on_record},
};

/// How long nobody has to look for the programs to stop telling.
const GRACE: Duration = Duration::from_secs(3);
/// Between renewals.
const RENEWAL: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// `tproxy trace`
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    filter: DecisionFilter,
    /// Print a JSON object a line
    #[arg(long)]
    json: bool,
}

/// Which decisions are shown; all that is given has to hold.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DecisionFilter {
    /// Of this protocol
    #[arg(long = "proto", value_name = "PROTOCOL")]
    protocol: Option<FlowProtocol>,
    /// Seen in this scope
    #[arg(long)]
    scope: Option<FlowScope>,
    /// Of this client: ADDR, PREFIX, ADDR:PORT or :PORT
    #[arg(long, value_name = "ENDPOINT")]
    client: Option<EndpointFilter>,
    /// To this destination, in the same forms
    #[arg(long, value_name = "ENDPOINT")]
    dst: Option<EndpointFilter>,
    /// Whose reason begins so, such as steer, pass or pass_no_rule
    #[arg(long, value_name = "NAME")]
    reason: Option<String>,
}

impl DecisionFilter {
    fn selects(&self, decided: &ShownDecision) -> bool {
        self.protocol.is_none_or(|protocol| protocol == decided.protocol)
            && self.scope.is_none_or(|scope| scope == decided.scope)
            && self.client.is_none_or(|client| client.includes(decided.client))
            && self.dst.is_none_or(|dst| dst.includes(decided.destination))
            && self.reason.as_ref().is_none_or(|begin| decided.reason.starts_with(begin.as_str()))
    }
}

/// Why there is nothing to see.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// No instance.
    #[error("no tproxy runs in this network namespace, so nothing is decided")]
    NothingRuns,
    /// What is told is told once.
    #[error("another tproxy trace looks at the instance with pid {0}; end that one first")]
    Taken(u32),
    /// The host did not answer.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The instance did not answer.
    #[error(transparent)]
    Running(#[from] RunningError),
    /// The system refused.
    #[error("cannot wait for what is decided: {0}")]
    Wait(#[source] io::Error),
    /// Nobody reads any more.
    #[error("cannot write: {0}")]
    Write(#[source] io::Error),
}

/// A decision about a flow, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct ShownDecision {
    /// Since 1970, in UTC, to some milliseconds.
    time: String,
    pid: u32,
    protocol: FlowProtocol,
    scope: FlowScope,
    client: SocketAddr,
    destination: SocketAddr,
    interface: String,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<RuleIndex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
}

impl fmt::Display for ShownDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, protocol, scope, client, destination, interface, reason, .. } = self;
        let (protocol, scope) = (protocol.name(), scope.name());
        write!(f, "{time} {protocol} {client} > {destination} {scope} {interface} {reason}")?;
        if let Some(rule) = self.rule {
            write!(f, " rule={rule}")?;
        }
        self.uid.map_or(Ok(()), |uid| write!(f, " uid={uid}"))
    }
}

/// An instance that is looked at.
struct TracedInstance {
    pid: u32,
    watch: Watch,
    lost: u64,
    /// Held as long as it is looked at: what one takes, another would miss. Its name goes with the process.
    _alone: UnixListener,
}

impl TracedInstance {
    fn of(running: &Running) -> Result<Self, TraceError> {
        let name = format!("tproxy-trace-{}", running.trace_id()?);
        let alone = UnixAddr::from_abstract_name(name).and_then(|addr| UnixListener::bind_addr(&addr));
        let _alone = alone.map_err(|_| TraceError::Taken(running.pid))?;
        let watch = running.watch()?;
        Ok(Self { pid: running.pid, lost: watch.lost()?, watch, _alone })
    }
}

/// Shows what the instances of the calling thread's network namespace decide, until nobody reads any more or they are
/// all gone.
///
/// # Errors
/// [`TraceError`]
pub fn follow(args: &Args, out: &mut impl Write, says: impl Fn(&str)) -> Result<(), TraceError> {
    let alive: Vec<_> =
        on_record()?.into_iter().filter(|instance| instance.standing == Standing::Lives).collect();
    let mut sources = alive
        .iter()
        .map(|instance| TracedInstance::of(&Running::of(instance.pid)?))
        .collect::<Result<Vec<_>, _>>()?;
    if sources.is_empty() {
        return Err(TraceError::NothingRuns);
    }
    // What an earlier one was ended before it took.
    for source in &mut sources {
        while source.watch.take().is_some() {}
    }
    renew(&mut sources)?;
    let mut names = Names::new();
    for source in &sources {
        says(&format!("looking at the instance with pid {}", source.pid));
    }
    loop {
        let mut waiting: Vec<_> = sources
            .iter()
            .map(|source| PollFd::from_borrowed_fd(source.watch.as_fd(), PollFlags::IN))
            .collect();
        match poll(&mut waiting, Some(&RENEWAL)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(TraceError::Wait(error.into())),
        }
        for source in &mut sources {
            while let Some(told) = source.watch.take() {
                if let Some(decided) = decided(source.pid, &told, &mut names) {
                    show(args, &decided, out).map_err(TraceError::Write)?;
                }
            }
            let lost = source.watch.lost()?;
            if lost > source.lost {
                says(&format!("{} decisions were not shown: there are too many", lost - source.lost));
                source.lost = lost;
            }
        }
        sources.retain(|source| std::fs::exists(format!("/proc/{}", source.pid)).unwrap_or(false));
        if sources.is_empty() {
            return Ok(());
        }
        renew(&mut sources)?;
    }
}

fn renew(sources: &mut [TracedInstance]) -> Result<(), TraceError> {
    let until = now() + GRACE.as_nanos() as u64;
    Ok(sources.iter_mut().try_for_each(|source| source.watch.until(until))?)
}

fn show(args: &Args, decided: &ShownDecision, out: &mut impl Write) -> io::Result<()> {
    if !args.filter.selects(decided) {
        return Ok(());
    }
    if args.json {
        serde_json::to_writer(&mut *out, decided)?;
        writeln!(out)
    } else {
        writeln!(out, "{decided}")
    }
}

/// None of what a program of another version tells.
fn decided(pid: u32, told: &Told, names: &mut Names) -> Option<ShownDecision> {
    let protocol = Protocol::ALL.into_iter().find(|protocol| *protocol as u32 == told.protocol)?;
    let scope = Scope::ALL.into_iter().find(|scope| *scope as u32 == told.scope)?;
    let reason = Reason::ALL.get(told.reason as usize)?;
    let endpoint = |addr, port| SocketAddr::new(addr, u16::from_be_bytes(port));
    Some(ShownDecision {
        time: time_of(told.seen),
        pid,
        protocol: protocol.into(),
        scope: scope.into(),
        client: endpoint(told.tuple.src.into(), told.tuple.sport),
        destination: endpoint(told.tuple.dst.into(), told.tuple.dport),
        interface: name_of(told.ifindex, names),
        reason: reason.name(),
        rule: (told.rule != NO_RULE).then_some(told.rule),
        uid: (scope == Scope::Outbound).then_some(told.uid),
    })
}

/// Interfaces by index, which none inherits from another.
type Names = BTreeMap<u32, String>;

fn name_of(index: u32, names: &mut Names) -> String {
    if !names.contains_key(&index) {
        names.extend(links::snapshot().into_iter().flatten().map(|link| (link.index, link.name)));
    }
    names.entry(index).or_insert_with(|| format!("if{index}")).clone()
}

/// The time of day at a moment that the programs' clock shows.
fn time_of(seen: u64) -> String {
    let ago = Duration::from_nanos(now().saturating_sub(seen));
    humantime::format_rfc3339_millis(SystemTime::now() - ago).to_string()
}

/// The programs' clock, in nanoseconds since boot.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use tproxy_common::{addr::Addr, flow::Tuple};

    use super::*;

    fn told() -> Told {
        let tuple = Tuple {
            src: Addr::from_v4([10, 0, 0, 5]),
            dst: Addr::from_v4([8, 8, 8, 8]),
            sport: 5555_u16.to_be_bytes(),
            dport: 443_u16.to_be_bytes(),
        };
        let (protocol, scope) = (Protocol::Tcp as u32, Scope::Outbound as u32);
        let reason = Reason::RuleSteer as u32;
        Told { seen: now(), tuple, protocol, scope, ifindex: 1, uid: 7, reason, rule: 3, rest: 0 }
    }

    #[test]
    fn a_decision_is_one_line() {
        let line = decided(1, &told(), &mut Names::new()).unwrap().to_string();
        let (_, rest) = line.split_once(' ').unwrap();
        assert_eq!(rest, "tcp 10.0.0.5:5555 > 8.8.8.8:443 outbound lo steer_rule rule=3 uid=7");
        let forwarded = Told { scope: Scope::Forwarded as u32, rule: NO_RULE, ..told() };
        assert!(
            decided(1, &forwarded, &mut Names::new())
                .unwrap()
                .to_string()
                .ends_with("forwarded lo steer_rule")
        );
        assert_eq!(decided(1, &Told { reason: 999, ..told() }, &mut Names::new()), None);
    }

    #[test]
    fn all_that_a_filter_names_has_to_hold() {
        let decided = decided(1, &told(), &mut Names::new()).unwrap();
        let all = DecisionFilter {
            protocol: Some(FlowProtocol::Tcp),
            scope: Some(FlowScope::Outbound),
            client: Some("10.0.0.0/8".parse().unwrap()),
            dst: Some(":443".parse().unwrap()),
            reason: Some("steer".into()),
        };
        assert!(DecisionFilter::default().selects(&decided) && all.selects(&decided));
        for other in [
            DecisionFilter { protocol: Some(FlowProtocol::Udp), ..all.clone() },
            DecisionFilter { scope: Some(FlowScope::Inbound), ..all.clone() },
            DecisionFilter { client: Some("10.0.0.6".parse().unwrap()), ..all.clone() },
            DecisionFilter { dst: Some("8.8.8.8:80".parse().unwrap()), ..all.clone() },
            DecisionFilter { reason: Some("pass".into()), ..all },
        ] {
            assert!(!other.selects(&decided), "{other:?}");
        }
    }
}
