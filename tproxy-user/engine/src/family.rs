//! The two Internet protocols.

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_route::AddressFamily;
use serde::{Deserialize, Serialize};
use socket2::Domain;
use tproxy_common::abi;

/// Version of the Internet Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6, which never includes IPv4 here.
    V6,
}

impl Family {
    /// Both, in the order in which they are worked through.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Those that the kernel has at all, of which sockets can be made, also where `disable_ipv6` is set for now: it may be
    /// booted with `ipv6.disable=1`, or built without IPv6.
    pub fn supported() -> impl Iterator<Item = Self> {
        let has_v6 = fs::exists("/proc/sys/net/ipv6/conf").unwrap_or_default();
        Self::BOTH.into_iter().filter(move |family| *family == Self::V4 || has_v6)
    }

    /// Those that `lo` of the calling thread's network namespace speaks at the moment.
    pub fn available() -> impl Iterator<Item = Self> {
        let disabled = fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
        let has_v6 = disabled.is_ok_and(|disabled| disabled.trim() == "0");
        Self::BOTH.into_iter().filter(move |family| *family == Self::V4 || has_v6)
    }

    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// `127.0.0.1` or `::1`.
    #[must_use]
    pub const fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Self::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl From<Family> for AddressFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::Inet,
            Family::V6 => Self::Inet6,
        }
    }
}

impl From<Family> for Domain {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::IPV4,
            Family::V6 => Self::IPV6,
        }
    }
}

impl From<Family> for abi::Family {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4,
            Family::V6 => Self::V6,
        }
    }
}
