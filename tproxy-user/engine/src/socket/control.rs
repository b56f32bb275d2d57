//! Control messages for `sendmsg`, built in place (cmsg(3)).

use std::net::IpAddr;

use super::message::TrafficClass;

/// A header: length, level and type.
const HEADER: usize = size_of::<usize>() + 2 * size_of::<i32>();

/// An address, a traffic class and a size with their headers.
const ROOM: usize = 104;

/// Whence a datagram is to be sent, and with which traffic class.
pub(super) struct SendControl {
    bytes: [u8; ROOM],
    used: usize,
}

impl SendControl {
    /// Nothing but the class of what is sent to `to`.
    pub(super) fn of_class(to: IpAddr, class: TrafficClass) -> Self {
        let mut control = Self { bytes: [0; ROOM], used: 0 };
        let number = i32::from(class.0).to_ne_bytes();
        match to {
            IpAddr::V4(_) => control.push(libc::IPPROTO_IP, libc::IP_TOS, &number),
            IpAddr::V6(_) => control.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &number),
        }
        control
    }

    pub(super) fn new(from: IpAddr, class: TrafficClass) -> Self {
        let mut control = Self::of_class(from, class);
        match from {
            IpAddr::V4(from) => {
                // struct in_pktinfo: interface, source, and what is meaningful for received ones only.
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&from.octets());
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            IpAddr::V6(from) => {
                // struct in6_pktinfo: source, interface.
                let mut info = [0; 20];
                info[..16].copy_from_slice(&from.octets());
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
        control
    }

    /// Has the kernel make datagrams of `size` bytes of what is sent.
    pub(super) fn segment(&mut self, size: u16) {
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let length = HEADER + data.len();
        let parts = [&length.to_ne_bytes()[..], &level.to_ne_bytes(), &kind.to_ne_bytes(), data];
        let mut place = self.used;
        for part in parts {
            self.bytes[place..place + part.len()].copy_from_slice(part);
            place += part.len();
        }
        self.used += length.next_multiple_of(size_of::<usize>());
    }
}
