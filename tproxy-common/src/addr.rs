//! One address type for both families.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// An IPv4-mapped IPv6 address in network byte order.
///
/// Aligned to four bytes because the BPF backend copies byte arrays of alignment one a byte at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct Addr(pub [u8; 16]);

impl Addr {
    /// `::ffff:a.b.c.d`
    #[inline(always)]
    #[must_use]
    pub const fn from_v4(v4: [u8; 4]) -> Self {
        let m = MAPPED;
        Self([
            m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7], m[8], m[9], m[10], m[11], v4[0], v4[1], v4[2],
            v4[3],
        ])
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub fn is_v4(&self) -> bool {
        self.0[..12] == MAPPED
    }

    /// The last four bytes: the IPv4 address, if it is one.
    #[inline(always)]
    #[must_use]
    pub const fn v4(&self) -> [u8; 4] {
        [self.0[12], self.0[13], self.0[14], self.0[15]]
    }

    /// Multicast, broadcast or unspecified: no connection to such an address can be taken over, and from such a one the kernel
    /// forwards nothing. Of 0.0.0.0/8 and 240.0.0.0/4 it forwards the rest (Linux 5.3, 96125bf9985a).
    #[inline(always)]
    #[must_use]
    pub fn is_special(&self) -> bool {
        if self.is_v4() {
            let v4 = self.v4();
            // 224.0.0.0/4 is multicast.
            v4[0] & 0xf0 == 0xe0 || v4 == [255; 4] || v4 == [0; 4]
        } else {
            // ff00::/8 multicast
            self.0[0] == 0xff || self.0 == [0; 16]
        }
    }

    /// 0.0.0.0 or `::`, whichever is of the same family.
    #[inline(always)]
    #[must_use]
    pub fn unspecified(&self) -> Self {
        if self.is_v4() { Self::from_v4([0; 4]) } else { Self([0; 16]) }
    }

    /// 169.254.0.0/16 or fe80::/10: of one link, and so of no rule that does not name the host.
    #[inline(always)]
    #[must_use]
    pub fn is_link_local(&self) -> bool {
        if self.is_v4() {
            self.0[12..14] == [169, 254]
        } else {
            self.0[0] == 0xfe && self.0[1] & 0xc0 == 0x80
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() { Ipv4Addr::from(addr.v4()).into() } else { Ipv6Addr::from(addr.0).into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn both_families_round_trip() {
        for text in ["10.1.2.3", "2001:db8::1", "::1", "0.0.0.0"] {
            assert_eq!(IpAddr::from(addr(text)), text.parse::<IpAddr>().unwrap());
        }
    }

    #[test]
    fn special_addresses() {
        for text in ["224.0.0.1", "239.255.255.250", "255.255.255.255", "0.0.0.0", "ff02::1", "::"] {
            assert!(addr(text).is_special(), "{text}");
        }
        for text in [
            "8.8.8.8",
            "127.0.0.1",
            "0.1.2.3",
            "240.0.0.1",
            "255.255.255.254",
            "169.254.1.1",
            "2001:4860::1",
            "fe80::1",
            "::1",
        ] {
            assert!(!addr(text).is_special(), "{text}");
        }
    }

    #[test]
    fn link_local_addresses() {
        for (text, is) in [
            ("169.254.169.254", true),
            ("169.253.0.1", false),
            ("169.255.0.1", false),
            ("fe80::1", true),
            ("febf::1", true),
            ("fec0::1", false),
            ("::1", false),
        ] {
            assert_eq!(addr(text).is_link_local(), is, "{text}");
        }
    }
}
