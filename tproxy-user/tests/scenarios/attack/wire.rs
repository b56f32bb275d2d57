//! Frames of one's own on a link.

use std::os::fd::AsRawFd as _;

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{LinkAddr, MsgFlags, sendto},
};
use socket2::{Domain, Socket, Type};

use crate::support::*;

/// The tag of no VLAN, with a priority.
pub(super) const PRIORITY_TAG: [u8; 4] = [0x81, 0x00, 0xe0, 0x00];

/// From a device to its peer, past all that the kernel would do to a packet.
pub(super) struct Wire {
    socket: Socket,
    device: LinkAddr,
    macs: [u8; 12],
}

impl Wire {
    /// From the client's end of its link to the gateway.
    pub(super) fn of(net: &Topology) -> Self {
        let device = link(&net.client, "eth0");
        let [to, from] = [link(&net.gateway, "lan"), device].map(|link| link.addr().expect("it has a MAC"));
        let macs = [to, from].concat().try_into().expect("twice six");
        // Without a protocol it receives none (packet(7)).
        let socket = net.client.enter(|| Socket::new(Domain::PACKET, Type::RAW, None)).expect("AF_PACKET");
        Self { socket, device, macs }
    }

    /// With these tags before its EtherType.
    pub(super) fn send(&self, tags: &[[u8; 4]], packet: &[u8]) {
        let ether_type: u16 =
            if packet.first().is_some_and(|first| first >> 4 == 6) { 0x86dd } else { 0x0800 };
        let frame = [&self.macs[..], &tags.concat(), &ether_type.to_be_bytes(), packet].concat();
        // What is longer than the link takes is none of its frames.
        let _ = sendto(self.socket.as_raw_fd(), &frame, &self.device, MsgFlags::empty());
    }
}

fn link(namespace: &Namespace, name: &str) -> LinkAddr {
    let mut all = namespace.enter(|| getifaddrs().expect("getifaddrs").collect::<Vec<_>>()).into_iter();
    all.find_map(|one| if one.interface_name == name { one.address?.as_link_addr().copied() } else { None })
        .unwrap_or_else(|| panic!("there is no {name}"))
}
