//! By which routing table a packet leaves: the kernel is asked.

use std::{io, net::SocketAddr};

use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use tproxy_common::flow::Protocol;

use super::{
    local_table::{RT_TABLE_LOCAL, table},
    netlink::Netlink,
};
use crate::family::Family;

/// What routing rules can know of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RoutedPacket {
    /// The interface that it comes in by; 0, if a process of this host sends it.
    pub(crate) iif: u32,
    /// The only interface that it may leave by; 0 is any.
    pub(crate) oif: u32,
    pub(crate) from: Option<SocketAddr>,
    pub(crate) to: SocketAddr,
    /// Of which the ports are; without it, ports are nobody's concern.
    pub(crate) protocol: Option<Protocol>,
    pub(crate) mark: u32,
    /// Of the process.
    pub(crate) uid: u32,
    /// Its type of service or traffic class.
    pub(crate) class: u8,
}

/// Who asks, and keeps a socket for it.
#[derive(Default)]
pub(crate) struct Asker(Option<Netlink>);

impl Asker {
    /// The table that has the packet's route; none where that is no table's: the packet is for this host, or an interface
    /// is given that no route names, and the kernel takes the destination for a neighbour.
    ///
    /// # Errors
    /// The kernel's: there is no route, or one that says so.
    pub(crate) fn table_of(&mut self, packet: &RoutedPacket) -> io::Result<Option<u32>> {
        let netlink = match self.0.take() {
            Some(netlink) => netlink,
            None => Netlink::open(NETLINK_ROUTE)?,
        };
        let answer = netlink.get(RouteNetlinkMessage::GetRoute(packet.question()));
        self.0 = Some(netlink);
        Ok(match answer? {
            Some(RouteNetlinkMessage::NewRoute(route)) if route.header.kind == RouteType::Unicast => {
                Some(table(&route)).filter(|table| *table != 0 && *table != RT_TABLE_LOCAL)
            }
            _ => None,
        })
    }
}

impl RoutedPacket {
    fn question(&self) -> RouteMessage {
        let family = Family::of(self.to.ip());
        let length = if family == Family::V4 { 32 } else { 128 };
        let mut question = RouteMessage::default();
        question.header = RouteHeader {
            address_family: family.into(),
            destination_prefix_length: length,
            source_prefix_length: if self.from.is_some() { length } else { 0 },
            tos: self.class,
            // IPv4 says nothing of the table otherwise (`inet_rtm_getroute`); IPv6 always does, and refuses the flag.
            flags: if family == Family::V4 { RouteFlags::LookupTable } else { RouteFlags::empty() },
            ..RouteHeader::default()
        };
        let mut attributes = vec![
            RouteAttribute::Destination(address(self.to)),
            RouteAttribute::Mark(self.mark),
            RouteAttribute::Uid(self.uid),
        ];
        attributes.extend(self.from.map(|from| RouteAttribute::Source(address(from))));
        attributes.extend((self.iif != 0).then_some(RouteAttribute::Iif(self.iif)));
        attributes.extend((self.oif != 0).then_some(RouteAttribute::Oif(self.oif)));
        if let Some(protocol) = self.protocol {
            attributes
                .extend([RouteAttribute::IpProto(protocol.number()), RouteAttribute::Dport(self.to.port())]);
            attributes.extend(self.from.map(|from| RouteAttribute::Sport(from.port())));
        }
        question.attributes = attributes;
        question
    }
}

fn address(of: SocketAddr) -> RouteAddress {
    match of {
        SocketAddr::V4(of) => RouteAddress::Inet(*of.ip()),
        SocketAddr::V6(of) => RouteAddress::Inet6(*of.ip()),
    }
}
