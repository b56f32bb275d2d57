//! Which addresses are the host's own, and which interfaces lead anywhere: the routing tables, read.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, PoisonError, RwLock},
};

use ipnet::IpNet;
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;

use super::{HostError, netlink::Netlink};
use crate::family::Family;

/// Asked first everywhere: it has the host's own addresses only.
pub(super) const RT_TABLE_LOCAL: u32 = 255;
const LOCAL_KINDS: [RouteType; 4] =
    [RouteType::Local, RouteType::Broadcast, RouteType::Anycast, RouteType::Multicast];

/// Every prefix that the host takes for itself: its addresses, broadcast, anycast, multicast.
///
/// The datapath needs the list because `bpf_fib_lookup` cannot tell "local" from "no route", and does not
/// answer at all where forwarding is off.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalTable(BTreeSet<IpNet>);

/// The same as it is now. A handle: the instance says, and its workers ask.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostAddresses(Arc<RwLock<LocalTable>>);

impl HostAddresses {
    pub(crate) fn set(&self, addresses: LocalTable) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    pub(crate) fn contains(&self, addr: IpAddr) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(addr)
    }
}

#[cfg(test)]
impl From<LocalTable> for HostAddresses {
    fn from(addresses: LocalTable) -> Self {
        Self(Arc::new(RwLock::new(addresses)))
    }
}

impl LocalTable {
    /// Reads all tables but `except_table`, our own. A `local default` of any table is left out:
    /// that is another interceptor, not an address.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub fn load(except_table: u32) -> Result<Self, HostError> {
        let mut prefixes = BTreeSet::new();
        for kind in LOCAL_KINDS {
            routes(RouteFilter { kind, table: None }, |route| {
                if table(&route) != except_table {
                    prefixes.extend(destination(&route).filter(|prefix| prefix.prefix_len() > 0));
                }
            })?;
        }
        Ok(Self(prefixes))
    }

    /// Whether `addr` is the host's own. An IPv4-mapped IPv6 address is its IPv4 address.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        self.0.iter().any(|prefix| prefix.contains(&addr))
    }

    /// In a fixed order, without duplicates.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<IpNet> for LocalTable {
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        Self(prefixes.into_iter().collect())
    }
}

/// Indices of the interfaces that carry a default or connected unicast route, `lo` excepted.
/// `fe80::/64` does not count: every IPv6 interface has it, down to each port of a bridge.
///
/// # Errors
/// [`HostError::Netlink`].
pub fn routed_interfaces() -> Result<BTreeSet<u32>, HostError> {
    let mut indices = BTreeSet::new();
    routes(RouteFilter { kind: RouteType::Unicast, table: None }, |route| {
        if table(&route) != RT_TABLE_LOCAL && leads_somewhere(&route) {
            indices.extend(interfaces(&route));
        }
    })?;
    indices.remove(&LOOPBACK);
    Ok(indices)
}

/// `lo` has index 1 in every namespace (`LOOPBACK_IFINDEX`).
pub const LOOPBACK: u32 = 1;

pub(super) fn is_local(kind: RouteType) -> bool {
    LOCAL_KINDS.contains(&kind)
}

fn leads_somewhere(route: &RouteMessage) -> bool {
    let connected = route.header.scope == RouteScope::Link
        || !route.attributes.iter().any(|attribute| {
            matches!(
                attribute,
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_)
            )
        });
    match destination(route) {
        Some(IpNet::V6(prefix)) if prefix.addr().is_unicast_link_local() => false,
        Some(prefix) => prefix.prefix_len() == 0 || connected,
        None => false,
    }
}

fn interfaces(route: &RouteMessage) -> Vec<u32> {
    route
        .attributes
        .iter()
        .flat_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => vec![*index],
            RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
            _ => Vec::new(),
        })
        .collect()
}

/// What a dump of routes is limited to; the kernel does the filtering, so that a router with a million
/// routes is not copied for the sake of a few.
pub(super) struct RouteFilter {
    /// `Unspec` is any.
    pub(super) kind: RouteType,
    pub(super) table: Option<u32>,
}

/// Calls `each` for the routes of both families, perhaps more than once for the same.
pub(super) fn routes(filter: RouteFilter, mut each: impl FnMut(RouteMessage)) -> Result<(), HostError> {
    let mut dump = || {
        let netlink = Netlink::open(NETLINK_ROUTE)?;
        for family in Family::BOTH {
            let mut request = RouteMessage::default();
            request.header =
                RouteHeader { address_family: family.into(), kind: filter.kind, ..RouteHeader::default() };
            request.attributes = filter.table.map(RouteAttribute::Table).into_iter().collect();
            let answered = netlink.dump(RouteNetlinkMessage::GetRoute(request), |answer| match answer {
                // Without IPv6 the kernel answers for every family it has.
                RouteNetlinkMessage::NewRoute(route) if route.header.address_family == family.into() => {
                    each(route);
                }
                _ => {}
            });
            match answered {
                // The one table asked for does not exist.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => {}
                answered => answered?,
            }
        }
        Ok(())
    };
    dump().map_err(|source| HostError::Netlink { action: "list the routes".into(), source })
}

/// The table's number, which outgrew the header's byte.
pub(super) fn table(route: &RouteMessage) -> u32 {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or_else(|| route.header.table.into())
}

/// `None` for families other than IP.
pub(super) fn destination(route: &RouteMessage) -> Option<IpNet> {
    let addr = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(addr)) => Some(IpAddr::V4(*addr)),
            RouteAttribute::Destination(RouteAddress::Inet6(addr)) => Some(IpAddr::V6(*addr)),
            _ => None,
        })
        .or_else(|| {
            // A default route has no destination.
            if route.header.address_family == Family::V4.into() {
                Some(Ipv4Addr::UNSPECIFIED.into())
            } else if route.header.address_family == Family::V6.into() {
                Some(Ipv6Addr::UNSPECIFIED.into())
            } else {
                None
            }
        })?;
    IpNet::new(addr, route.header.destination_prefix_length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_its_ipv4_address() {
        let table: LocalTable = ["127.0.0.0/8".parse().unwrap()].into_iter().collect();
        assert!(table.contains("::ffff:127.0.0.1".parse().unwrap()));
        assert!(!table.contains("::1".parse().unwrap()));
    }
}
