//! What is measured.

mod bulk;
mod connections;
mod datagrams;
mod idle;
mod metric;
mod ping_pong;
mod program;
mod requests;
mod syns;

use std::time::Duration;

use clap::ValueEnum;
use datagrams::Sending;
pub(super) use metric::{Better, Metric, Sample};
use serde::{Serialize, Serializer};
use tproxy::config::Source;

use super::{
    contender::{Contender, Skill, Way},
    cpu::CpuTime,
    lane::Lane,
    pace::Pace,
    steering::Rules,
};

/// A kind of traffic, and what is counted about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub(super) enum Workload {
    /// New connections: connect, a small HTTP request, close
    Connections,
    /// HTTP requests on 64 connections that are kept (wrk)
    #[value(name = "requests-64")]
    Requests64,
    /// HTTP requests on 1,000 connections that are kept (wrk)
    #[value(name = "requests-1000")]
    Requests1000,
    /// Client to server, one flow (iperf3)
    #[value(name = "bulk-1-up")]
    Bulk1Up,
    /// Server to client, one flow (iperf3)
    #[value(name = "bulk-1-down")]
    Bulk1Down,
    /// Client to server, eight flows (iperf3)
    #[value(name = "bulk-8-up")]
    Bulk8Up,
    /// Server to client, eight flows (iperf3)
    #[value(name = "bulk-8-down")]
    Bulk8Down,
    /// One byte there and back, everything on one CPU
    PingPong,
    /// Client to server, datagrams of 64 bytes, sent 32 at a time (UDP_SEGMENT)
    #[value(name = "udp-64")]
    Udp64,
    /// Client to server, datagrams of 1,200 bytes, sent 32 at a time (UDP_SEGMENT)
    #[value(name = "udp-1200")]
    Udp1200,
    /// Client to server, datagrams of 1,200 bytes, sent one at a time
    #[value(name = "udp-1200-singly")]
    Udp1200Singly,
    /// User-space memory of a connection that has carried a request and is idle
    Idle,
    /// Server to client, one flow that no rule matches (iperf3)
    PassedBulk,
    /// One byte there and back, matched by no rule, everything on one CPU
    PassedPingPong,
    /// New connections that no rule matches
    PassedConnections,
    /// Run time of the tc programs on packets that are not ours (bpf_stats)
    Program,
    /// New connections, the last of 64 rules
    #[value(name = "rules-64")]
    Rules64,
    /// New connections, the last of 1,000 rules
    #[value(name = "rules-1000")]
    Rules1000,
    /// New connections, the last of 4,096 rules
    #[value(name = "rules-4096")]
    Rules4096,
    /// SYNs that go no further than the decision, one rule
    #[value(name = "syns-1")]
    Syns1,
    /// The same, the last of 64 rules
    #[value(name = "syns-64")]
    Syns64,
    /// The same, the last of 512 rules
    #[value(name = "syns-512")]
    Syns512,
    /// The same, the last of 4,096 rules
    #[value(name = "syns-4096")]
    Syns4096,
    /// The same, the last of 4,096 rules that have 100,000 prefixes
    SynsPrefixes,
}

impl Workload {
    /// The rules that it is measured with.
    pub(super) const fn rules(self) -> Rules {
        match self {
            Self::PassedBulk | Self::PassedPingPong | Self::PassedConnections | Self::Program => Rules::Other,
            Self::Rules64 | Self::Syns64 => Rules::LastOf(64),
            Self::Syns512 => Rules::LastOf(512),
            Self::Rules1000 => Rules::LastOf(1_000),
            Self::Rules4096 | Self::Syns4096 => Rules::LastOf(4_096),
            Self::SynsPrefixes => Rules::Prefixes,
            _ => Rules::One,
        }
    }

    /// Whether there is something to measure about a contender.
    pub(super) fn concerns(self, contender: Contender) -> bool {
        match (self, contender) {
            (_, Contender::Proxy(way, _)) if !self.is_for(way.skill()) => false,
            (Self::Idle | Self::Program, Contender::Plain) => false,
            (_, Contender::Plain) => true,
            // iptables would need ipset for so many.
            (Self::Program | Self::SynsPrefixes, Contender::Proxy(way, source)) => {
                way.is_datapath() && source == Source::Host
            }
            // What does not depend on the relay is not measured with all of them.
            (_, Contender::Proxy(way, source)) if self == Self::Syns1 || self.rules() != Rules::One => {
                !Way::PEERS.contains(&way) && source == Source::Host
            }
            _ => true,
        }
    }

    fn is_for(self, skill: Skill) -> bool {
        match skill {
            Skill::Both => true,
            Skill::Connections => !self.is_about_datagrams(),
            Skill::Datagrams => self.is_about_datagrams(),
        }
    }

    const fn is_about_datagrams(self) -> bool {
        matches!(self, Self::Udp64 | Self::Udp1200 | Self::Udp1200Singly)
    }

    /// Whether one round says it all: memory does not depend on the weather.
    pub(super) const fn is_steady(self) -> bool {
        matches!(self, Self::Idle)
    }

    /// # Errors
    /// Whatever keeps the load from being carried; nothing was measured then.
    pub(super) fn run(self, lane: &Lane, pace: Pace) -> anyhow::Result<Sample> {
        match self {
            Self::Connections
            | Self::PassedConnections
            | Self::Rules64
            | Self::Rules1000
            | Self::Rules4096 => connections::run(lane, pace),
            Self::Requests64 => requests::run(lane, pace, 64),
            Self::Requests1000 => requests::run(lane, pace, 1_000),
            Self::Bulk1Up => bulk::run(lane, pace, 1, bulk::Direction::Up),
            Self::Bulk1Down | Self::PassedBulk => bulk::run(lane, pace, 1, bulk::Direction::Down),
            Self::Bulk8Up => bulk::run(lane, pace, 8, bulk::Direction::Up),
            Self::Bulk8Down => bulk::run(lane, pace, 8, bulk::Direction::Down),
            Self::PingPong | Self::PassedPingPong => ping_pong::run(lane, pace),
            Self::Udp64 => datagrams::run(lane, pace, 64, Sending::Together),
            Self::Udp1200 => datagrams::run(lane, pace, 1_200, Sending::Together),
            Self::Udp1200Singly => datagrams::run(lane, pace, 1_200, Sending::Singly),
            Self::Idle => idle::run(lane),
            Self::Program => program::run(lane, pace),
            Self::Syns1 | Self::Syns64 | Self::Syns512 | Self::Syns4096 | Self::SynsPrefixes => {
                syns::run(lane, pace)
            }
        }
    }

    /// The programs it runs, beside those that every network needs.
    pub(super) const fn tool(self) -> Option<&'static str> {
        match self {
            Self::Requests64 | Self::Requests1000 => Some("wrk"),
            _ => None,
        }
    }

    /// Its name on the command line.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// What it is, in a line.
    pub(super) fn explanation(self) -> String {
        let help = self.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
        help.unwrap_or_default()
    }

    /// A unit of its work, and how CPU time per unit is written: the unit of time and how many make a second.
    pub(super) const fn work(self) -> (&'static str, &'static str, f64) {
        match self {
            Self::Requests64 | Self::Requests1000 => ("request", "µs", 1e6),
            Self::Bulk1Up | Self::Bulk1Down | Self::Bulk8Up | Self::Bulk8Down | Self::PassedBulk => {
                ("GB", "ms", 1e3)
            }
            Self::PingPong | Self::PassedPingPong => ("round trip", "µs", 1e6),
            Self::Udp64 | Self::Udp1200 | Self::Udp1200Singly => ("datagram", "µs", 1e6),
            Self::Syns1 | Self::Syns64 | Self::Syns512 | Self::Syns4096 | Self::SynsPrefixes => {
                ("SYN", "ns", 1e9)
            }
            _ => ("connection", "µs", 1e6),
        }
    }

    /// The unit of what is counted in a second.
    pub(super) fn rate_unit(self) -> String {
        match self.work().0 {
            "GB" => "Gb/s".into(),
            unit => format!("{unit}s/s"),
        }
    }
}

impl Serialize for Workload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

/// Work done in a span of time, and what it cost the machine.
struct Done {
    units: f64,
    span: Duration,
    cpu: CpuTime,
}

impl Done {
    fn sample(&self) -> Sample {
        let each = |seconds: f64| seconds / self.units;
        Sample(vec![
            (Metric::Rate, self.units / self.span.as_secs_f64()),
            (Metric::Cpu, each(self.cpu.busy())),
            (Metric::CpuUser, each(self.cpu.user)),
            (Metric::CpuSystem, each(self.cpu.system)),
            (Metric::CpuSoftirq, each(self.cpu.softirq)),
        ])
    }
}
