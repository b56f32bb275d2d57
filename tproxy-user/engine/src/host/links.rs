//! Interfaces: what there is, and word of every change.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    num::NonZeroU32,
};

use netlink_packet_core::NetlinkBuffer;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        InfoKind, InfoPortKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType,
        LinkMessage,
    },
    route::{RouteHeader, RouteType},
};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketType,
    netdevice::{index_to_name, name_to_index},
};

use super::{HostError, netlink::Netlink};

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// As the kernel counts them, in this namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What a frame on it begins with.
    pub layer: Layer,
    /// Set up by the administrator (`IFF_UP`), carrier or not.
    pub up: bool,
    /// The bridge, bond or team that it is a port of: what arrives here is the master's, and routing does not see it arrive.
    pub master: Option<u32>,
    /// The interface that it is a part of (VLAN, macvlan, ipvlan): what arrives there for this one is this one's.
    pub parent: Option<u32>,
}

/// What a frame begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layer {
    /// An Ethernet header.
    Ethernet,
    /// The IP header (tun, WireGuard, PPP, IP tunnels).
    Ip,
    /// An Ethernet header of zeroes: `lo`.
    Loopback,
    /// Neither, such as CAN or InfiniBand: nothing to steer there.
    Other,
}

impl From<LinkLayerType> for Layer {
    fn from(kind: LinkLayerType) -> Self {
        match kind {
            LinkLayerType::Ether => Self::Ethernet,
            LinkLayerType::Loopback => Self::Loopback,
            LinkLayerType::None
            | LinkLayerType::Rawip
            | LinkLayerType::Ppp
            | LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit
            | LinkLayerType::Ipgre
            | LinkLayerType::Ip6gre => Self::Ip,
            _ => Self::Other,
        }
    }
}

/// All interfaces of this namespace, by rising index.
///
/// # Errors
/// [`HostError::Netlink`].
pub fn snapshot() -> Result<Vec<Link>, HostError> {
    let mut request = LinkMessage::default();
    request.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    let mut links = BTreeMap::new();
    Netlink::open(NETLINK_ROUTE)
        .and_then(|netlink| {
            netlink.dump(RouteNetlinkMessage::GetLink(request), |answer| {
                if let RouteNetlinkMessage::NewLink(message) = answer {
                    links.extend(link(message).map(|link| (link.index, link)));
                }
            })
        })
        .map_err(|source| HostError::Netlink { action: "list the interfaces".into(), source })?;
    Ok(links.into_values().collect())
}

fn link(message: LinkMessage) -> Option<Link> {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        layer: message.header.link_layer_type.into(),
        up: message.header.flags.contains(LinkFlags::Up),
        master: None,
        parent: None,
    };
    let (mut lower, mut is_part, mut is_routed) = (None, false, false);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::Link(index) => lower = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => is_part = is_part_of_another(&kind),
                        // What arrives at a port of a VRF is routed there.
                        LinkInfo::PortKind(kind) => is_routed = kind == InfoPortKind::Vrf,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // Of others it names the peer, or what a tunnel's packets leave by.
    link.parent = lower.filter(|_| is_part);
    link.master = link.master.filter(|_| !is_routed);
    (!link.name.is_empty()).then_some(link)
}

const fn is_part_of_another(kind: &InfoKind) -> bool {
    matches!(
        kind,
        InfoKind::Vlan | InfoKind::MacVlan | InfoKind::MacVtap | InfoKind::IpVlan | InfoKind::IpVtap
    )
}

/// Indices of the interfaces that have an address of their own, a link-local one of IPv6 excepted.
///
/// # Errors
/// [`HostError::Netlink`].
pub fn addressed() -> Result<BTreeSet<u32>, HostError> {
    let mut indices = BTreeSet::new();
    each_address(|message| {
        let is_local = |attribute: &AddressAttribute| matches!(attribute, AddressAttribute::Address(IpAddr::V6(addr)) if addr.is_unicast_link_local());
        if !message.attributes.iter().any(is_local) {
            indices.insert(message.header.index);
        }
    })?;
    Ok(indices)
}

/// All addresses of the host's interfaces, be these up or not.
///
/// # Errors
/// [`HostError::Netlink`].
pub fn addresses() -> Result<BTreeSet<IpAddr>, HostError> {
    let mut found = BTreeSet::new();
    each_address(|message| {
        // Of a point-to-point link the other attribute is the peer's.
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        found.extend(local.or(address));
    })?;
    Ok(found)
}

fn each_address(mut each: impl FnMut(AddressMessage)) -> Result<(), HostError> {
    Netlink::open(NETLINK_ROUTE)
        .and_then(|netlink| {
            netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), |answer| {
                if let RouteNetlinkMessage::NewAddress(message) = answer {
                    each(message);
                }
            })
        })
        .map_err(|source| HostError::Netlink { action: "list the addresses".into(), source })
}

/// What an interface is called right now; none, if there is none with this index any more.
#[must_use]
pub fn name_of(index: u32) -> Option<String> {
    // Any socket does: it says which namespace is meant.
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    index_to_name(socket, index).ok()
}

/// The number of the interface of this name, if there is one.
#[must_use]
pub fn index_of(name: &str) -> Option<NonZeroU32> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    NonZeroU32::new(name_to_index(socket, name).ok()?)
}

/// What may have changed since the last word; whoever needs it asks anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changed {
    /// [`snapshot`].
    pub links: bool,
    /// [`super::local_table::LocalTable`].
    pub local_table: bool,
    /// [`super::local_table::routed_interfaces`].
    pub routes: bool,
    /// Rules or routes that may be ours.
    pub ours: bool,
    /// Directories of cgroups, which the kernel tells by other ways.
    pub cgroups: bool,
}

impl Changed {
    /// There is no word of anything.
    pub const NOTHING: Self =
        Self { links: false, local_table: false, routes: false, ours: false, cgroups: false };
    /// Anything may be otherwise.
    pub const EVERYTHING: Self =
        Self { links: true, local_table: true, routes: true, ours: true, cgroups: true };
    /// What the kernel gives no word of may be otherwise: sysctls and hooks.
    pub const OURS: Self = Self { ours: true, ..Self::NOTHING };

    /// What one of both says.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            links: self.links || other.links,
            local_table: self.local_table || other.local_table,
            routes: self.routes || other.routes,
            ours: self.ours || other.ours,
            cgroups: self.cgroups || other.cgroups,
        }
    }
}

// linux/rtnetlink.h; netlink-packet-route keeps its own copies private.
const RTMGRP_LINK: u32 = 0x1;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;
const RTMGRP_IPV4_ROUTE: u32 = 0x40;
const RTMGRP_IPV6_ROUTE: u32 = 0x400;
const RTMGRP_IPV4_RULE: u32 = 0x80;
/// `1 << (RTNLGRP_IPV6_RULE - 1)`, which has no name of its own.
const RTMGRP_IPV6_RULE: u32 = 1 << 18;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;

/// Tells when links, local addresses, routes or rules of the namespace it was made in change.
pub struct Monitor {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Must be called within a tokio runtime. What changes after it returns is reported, so take the first
    /// snapshot afterwards.
    ///
    /// # Errors
    /// The kernel's, for the netlink socket.
    pub fn new() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        // Each address comes with a route of the table `local`, but may go when its link, being down, has none any more.
        let addresses = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
        let routes = RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE | RTMGRP_IPV4_RULE | RTMGRP_IPV6_RULE;
        let groups = RTMGRP_LINK | addresses | routes;
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(Self { socket, buffer: Vec::with_capacity(64 * 1024) })
    }

    /// Waits for a change, and merges what else is queued by then. Safe to drop while waiting.
    ///
    /// # Errors
    /// The kernel's, other than an overrun, which means that everything changed.
    pub async fn next(&mut self) -> io::Result<Changed> {
        let mut changed = Changed::NOTHING;
        while changed == Changed::NOTHING {
            self.buffer.clear();
            let received = self.socket.recv(&mut self.buffer).await;
            changed = self.interpret(received)?;
        }
        // Bounded, since routing daemons may write faster than we read.
        for _ in 0..1024 {
            self.buffer.clear();
            match self.socket.socket_ref().recv(&mut self.buffer, 0).map(drop) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                received => changed = changed.and(self.interpret(received)?),
            }
        }
        Ok(changed)
    }

    fn interpret(&self, received: io::Result<()>) -> io::Result<Changed> {
        match received {
            Ok(()) => Ok(changed_by(&self.buffer)),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => Ok(Changed::EVERYTHING),
            Err(error) => Err(error),
        }
    }
}

/// Reads no more than headers: attributes that we would not understand must not hide a change.
fn changed_by(mut datagram: &[u8]) -> Changed {
    let mut changed = Changed::NOTHING;
    while let Ok(message) = NetlinkBuffer::new_checked(&datagram) {
        changed = changed.and(match message.message_type() {
            // Taking a link down flushes its IPv4 routes without a word (fib_flush()).
            RTM_NEWLINK | RTM_DELLINK => Changed::EVERYTHING,
            RTM_NEWROUTE | RTM_DELROUTE => {
                match RouteHeader::parse(message.payload()).map(|route| route.kind) {
                    Ok(RouteType::Unicast) => Changed { routes: true, ..Changed::NOTHING },
                    Ok(kind) if super::local_table::is_local(kind) => {
                        Changed { local_table: true, ours: true, ..Changed::NOTHING }
                    }
                    _ => Changed::NOTHING,
                }
            }
            RTM_DELADDR => Changed { local_table: true, ..Changed::NOTHING },
            RTM_NEWRULE | RTM_DELRULE => Changed::OURS,
            _ => Changed::NOTHING,
        });
        let length = (message.length() as usize).next_multiple_of(4);
        datagram = datagram.get(length..).unwrap_or_default();
    }
    changed
}
