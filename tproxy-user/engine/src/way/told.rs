//! The way of what is relayed, as `tproxy explain` tells it.

use std::{
    fmt, io,
    net::{SocketAddr, ToSocketAddrs as _},
};

use tproxy_common::{abi::Origin, flow::Protocol};

use super::{Asker, First, RoutedPacket, Routing, Ways};
use crate::{
    config::{Action, Host, Rule, Source, Upstream, UpstreamGroup},
    family::Family,
    flow::{ClientAddr, OriginalDst},
    generation::KeptRule,
    host::{
        links,
        policy::{self, Discernment, RT_TABLE_MAIN, table_for},
    },
    mark::Mark,
    socket::TrafficClass,
};

/// What is known of a flow of which nothing was seen yet.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Who would send it.
    pub client: SocketAddr,
    /// Where to.
    pub dst: SocketAddr,
    /// The interface that it would come in by; 0 for one that a process of this host sends.
    pub ifindex: u32,
    /// Of that process.
    pub uid: u32,
}

/// By which way what is relayed leaves, as routing is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The routing table that is meant, where that is the one of the client's own packets, or one that the rule chooses.
    pub meant: Option<u32>,
    /// The one that routing leads to.
    pub table: Option<u32>,
    /// The mark of the packets.
    pub mark: u32,
    /// The only interface by which they may leave.
    pub interface: Option<String>,
    /// Whose address they bear.
    pub source: String,
}

impl Way {
    /// That of what a rule of the instance with this mark relays of a flow; nothing, if it relays nothing.
    ///
    /// # Errors
    /// There is none: what the client would be told.
    pub fn of(rule: &Rule, mark: Mark, asked: &Asked) -> io::Result<Option<Self>> {
        let rule = KeptRule::from(rule);
        let to = match &rule.treatment.action {
            Action::Direct => asked.dst,
            Action::Upstream(Upstream::Address(upstream)) => *upstream,
            Action::Upstream(Upstream::Group(group)) => first_address(group)?,
            _ => return Ok(None),
        };
        let origin = Origin { mark: 0, uid: asked.uid, ifindex: asked.ifindex, device: 0 };
        let first = First {
            protocol: asked.protocol,
            client: ClientAddr(asked.client),
            dst: OriginalDst(asked.dst),
            to,
            origin: &origin,
            class: TrafficClass::default(),
        };
        let routing = Routing::default();
        let rules = policy::rules().map_err(io::Error::other)?;
        routing.set(
            &Family::BOTH
                .map(|family| Discernment::of(&rules, family, mark, rule.treatment.egress.chooses())),
        );
        let egress = Ways::new(routing, mark).egress(&rule, &first)?;
        let oif = egress.device.map_or(0, std::num::NonZeroU32::get);
        let packet = RoutedPacket {
            iif: 0,
            oif,
            from: None,
            to: SocketAddr::new(to.ip(), 0),
            protocol: None,
            mark: egress.mark(),
            uid: egress.uid.unwrap_or_default(),
            class: 0,
        };
        Ok(Some(Self {
            meant: egress.uid.and_then(table_for),
            table: Asker::default().table_of(&packet)?,
            mark: egress.mark(),
            interface: links::name_of(oif),
            source: match (rule.treatment.egress.source, rule.treatment.source) {
                (Some(source), _) => source.to_string(),
                (None, Source::Host) => "this host's".to_owned(),
                (None, Source::Client) => format!("{} (the client's)", asked.client.ip()),
                (None, Source::ClientPort) => format!("{} (the client's, with its port)", asked.client),
            },
        }))
    }
}

/// Where the server is that is tried first.
fn first_address(group: &UpstreamGroup) -> io::Result<SocketAddr> {
    let unknown = || io::Error::new(io::ErrorKind::NotFound, "no server has an address");
    let server = group.servers.first().ok_or_else(unknown)?;
    match &server.host {
        Host::Address(address) => Ok(SocketAddr::new(*address, server.port)),
        Host::Name(name) => (&**name, server.port).to_socket_addrs()?.next().ok_or_else(unknown),
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { meant, table, mark, interface, source } = self;
        let named = |table: &Option<u32>| match table {
            None => "no table".to_owned(),
            Some(RT_TABLE_MAIN) => "table main".to_owned(),
            Some(table) => format!("table {table}"),
        };
        match meant {
            Some(_) => write!(f, "by {}", named(meant))?,
            None => write!(f, "by {}, as any packet of this host", named(table))?,
        }
        if let Some(interface) = interface {
            write!(f, ", only by {interface}")?;
        }
        write!(f, ", with mark {mark:#x}, source {source}")
    }
}
