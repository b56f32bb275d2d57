//! Which flows somebody wants to see, or to close.

use std::{fmt, net::SocketAddr, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{FlowId, FlowProtocol, FlowScope, FlowState, LiveFlow};

/// What a flow has to be; all that is given has to hold. The flags of the command line and the query of a request are the
/// same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "flags", derive(clap::Args))]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// The flow of this number, as `tproxy flows` shows it
    #[cfg_attr(feature = "flags", arg(long, value_name = "N"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<FlowId>,
    /// Flows of this protocol
    #[cfg_attr(feature = "flags", arg(long = "proto", value_name = "PROTOCOL"))]
    #[serde(rename = "proto", skip_serializing_if = "Option::is_none")]
    pub protocol: Option<FlowProtocol>,
    /// Flows that a rule of this scope selected
    #[cfg_attr(feature = "flags", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<FlowScope>,
    /// Flows that the rule of this name selected
    #[cfg_attr(feature = "flags", arg(long, value_name = "NAME"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Flows of this client: ADDR, PREFIX, ADDR:PORT or :PORT
    #[cfg_attr(feature = "flags", arg(long, value_name = "ENDPOINT"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<EndpointFilter>,
    /// Flows to this original destination, in the same forms
    #[cfg_attr(feature = "flags", arg(long, value_name = "ENDPOINT"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<EndpointFilter>,
    /// Flows that lead to this upstream, in the same forms
    #[cfg_attr(feature = "flags", arg(long, value_name = "ENDPOINT"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<EndpointFilter>,
    /// Flows in this state
    #[cfg_attr(feature = "flags", arg(long))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<FlowState>,
}

impl Filter {
    /// Whether it says nothing, so that every flow is meant.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a flow is meant.
    #[must_use]
    pub fn selects(&self, flow: &LiveFlow) -> bool {
        let selection = flow.selection();
        holds(self.id.as_ref(), |id| *id == flow.id())
            && holds(self.protocol.as_ref(), |protocol| *protocol == FlowProtocol::from(selection.protocol))
            && holds(self.scope.as_ref(), |scope| *scope == FlowScope::from(selection.scope))
            && holds(self.rule.as_ref(), |rule| **rule == *selection.rule)
            && holds(self.client.as_ref(), |client| client.includes(selection.client.0))
            && holds(self.dst.as_ref(), |dst| dst.includes(selection.dst.0))
            && holds(self.upstream.as_ref(), |upstream| {
                flow.upstream().is_some_and(|addr| upstream.includes(addr))
            })
            && holds(self.state.as_ref(), |state| *state == flow.state())
    }
}

fn holds<T>(wanted: Option<&T>, holds: impl FnOnce(&T) -> bool) -> bool {
    wanted.is_none_or(holds)
}

/// One side of a flow: any address of a prefix, a port, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointFilter {
    prefix: Option<IpNet>,
    port: Option<u16>,
}

impl EndpointFilter {
    /// Whether it is this one.
    #[must_use]
    pub fn includes(&self, addr: SocketAddr) -> bool {
        self.prefix.is_none_or(|prefix| prefix.contains(&addr.ip()))
            && self.port.is_none_or(|port| port == addr.port())
    }
}

/// Neither address, prefix nor port.
#[derive(Debug, thiserror::Error)]
#[error(
    "'{0}' is no endpoint: write an address, a prefix, ADDR:PORT or :PORT, such as 10.0.0.0/8, [2001:db8::1]:53 or :443"
)]
pub struct BadEndpoint(String);

impl FromStr for EndpointFilter {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadEndpoint(text.to_owned());
        if let Some(port) = text.strip_prefix(':').and_then(|port| port.parse().ok()) {
            return Ok(Self { prefix: None, port: Some(port) });
        }
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return Ok(Self { prefix: Some(addr.ip().into()), port: Some(addr.port()) });
        }
        let prefix =
            text.parse().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from)).map_err(|_| bad())?;
        Ok(Self { prefix: Some(prefix), port: None })
    }
}

impl fmt::Display for EndpointFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.prefix, self.port) {
            (Some(prefix), Some(port)) => SocketAddr::new(prefix.addr(), port).fmt(f),
            (Some(prefix), None) => prefix.fmt(f),
            (None, port) => write!(f, ":{}", port.unwrap_or_default()),
        }
    }
}

impl Serialize for EndpointFilter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EndpointFilter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
