//! A flow as it is shown: what JSON and tables are made of.

use std::{net::SocketAddr, time::Instant};

use serde::{Deserialize, Serialize};
use tproxy_common::{flow::Protocol, rule::Scope};

use super::{FlowId, FlowState, LiveFlow};

/// A flow at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShownFlow {
    /// Its name, for `close`.
    pub id: FlowId,
    /// `tcp` or `udp`.
    pub protocol: FlowProtocol,
    /// Of the rule.
    pub scope: FlowScope,
    /// Who began it.
    pub client: SocketAddr,
    /// Where it was going.
    pub original_destination: SocketAddr,
    /// Where it leads, once that is known; nowhere, when it is answered in place of an upstream.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub upstream: Option<SocketAddr>,
    /// The rule that selected it.
    pub rule: String,
    /// From the client.
    pub bytes_up: u64,
    /// To the client.
    pub bytes_down: u64,
    /// Since it was accepted.
    pub age_seconds: f64,
    /// What becomes of it.
    pub state: FlowState,
    /// How it ended, if it has.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub end: Option<String>,
}

impl ShownFlow {
    /// As it is now.
    #[must_use]
    pub fn of(flow: &LiveFlow, now: Instant) -> Self {
        let selection = flow.selection();
        let (bytes_up, bytes_down) = flow.bytes();
        let age = now.saturating_duration_since(flow.began());
        Self {
            id: flow.id(),
            protocol: selection.protocol.into(),
            scope: selection.scope.into(),
            client: selection.client.0,
            original_destination: selection.dst.0,
            upstream: flow.upstream(),
            rule: selection.rule.as_ref().to_owned(),
            bytes_up,
            bytes_down,
            // To the millisecond is enough for people.
            age_seconds: age.as_millis() as f64 / 1000.0,
            state: flow.state(),
            end: flow.end().map(str::to_owned),
        }
    }
}

/// [`Protocol`], as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "flags", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum FlowProtocol {
    /// A connection.
    Tcp,
    /// A session.
    Udp,
}

/// [`Scope`], as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "flags", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum FlowScope {
    /// Arrives for an address that is not the host's.
    Forwarded,
    /// Sent by the host's own processes.
    Outbound,
    /// To the host's own addresses.
    Inbound,
}

impl FlowProtocol {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl FlowScope {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

impl From<Protocol> for FlowProtocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

impl From<Scope> for FlowScope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Forwarded => Self::Forwarded,
            Scope::Outbound => Self::Outbound,
            Scope::Inbound => Self::Inbound,
        }
    }
}
