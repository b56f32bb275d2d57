//! tc filters, and the clsact qdisc that they hang in: what a kernel without tcx (before Linux 6.6) attaches programs
//! by. Both stay when the process ends, so the journal has them. The filters themselves are added by the datapath.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;

use super::{
    Direction, is_absent,
    netlink::{Ignored, Netlink},
};
use crate::mark::Mark;

/// Of the filters of all instances: after those of others who chose a low one, before those who let the kernel choose.
pub const PRIORITY: u16 = 0x7470;

/// An instance's filter is told from those of others by its handle: no two living ones share a mark.
#[must_use]
pub const fn handle(mark: Mark) -> u32 {
    mark.steer()
}

/// Whether the interface has the qdisc.
pub(super) fn exists(interface: u32) -> io::Result<bool> {
    match request(RouteNetlinkMessage::GetQueueDiscipline(qdisc(interface)), 0) {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the interface has the qdisc `ingress` in its place, as policing and `ifb` shaping do (tc-mirred(8)). What is
/// for packets that leave would be attached for those that arrive: it has one chain for everything.
///
/// # Errors
/// The kernel's.
pub fn only_ingress(interface: u32) -> io::Result<bool> {
    let mut only = false;
    let asked = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(interface as i32));
    Netlink::open(NETLINK_ROUTE)?.dump(asked, |answer: RouteNetlinkMessage| {
        if let RouteNetlinkMessage::NewQueueDiscipline(found) = answer
            && found.header.index == interface as i32
        {
            only |= found.attributes.contains(&TcAttribute::Kind("ingress".into()));
        }
    })?;
    Ok(only)
}

/// Whether the interface has the filter of the instance with this mark.
///
/// # Errors
/// The kernel's.
pub fn has_filter(interface: u32, direction: Direction, mark: Mark) -> io::Result<bool> {
    match request(RouteNetlinkMessage::GetTrafficFilter(own_filter(interface, direction, mark)), 0) {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Adds the qdisc; that there is one already, or no such interface any more, is no error.
pub(super) fn add(interface: u32) -> io::Result<()> {
    let mut message = qdisc(interface);
    message.attributes.push(TcAttribute::Kind("clsact".into()));
    match request(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::EXIST | Errno::NODEV)) => Ok(()),
        added => added,
    }
}

/// Removes the qdisc, unless somebody's filter is in it.
pub(super) fn remove_unused(interface: u32) -> io::Result<()> {
    for direction in [Direction::Ingress, Direction::Egress] {
        let filters = RouteNetlinkMessage::GetTrafficFilter(filter(interface, direction));
        let mut used = false;
        Netlink::open(NETLINK_ROUTE)?.dump(filters, |_: Ignored| used = true)?;
        if used {
            return Ok(());
        }
    }
    request(RouteNetlinkMessage::DelQueueDiscipline(qdisc(interface)), 0)
}

/// Removes the filter of the instance with this mark.
pub(super) fn remove_filter(interface: u32, direction: Direction, mark: Mark) -> io::Result<()> {
    request(RouteNetlinkMessage::DelTrafficFilter(own_filter(interface, direction, mark)), 0)
}

fn own_filter(interface: u32, direction: Direction, mark: Mark) -> TcMessage {
    let mut message = filter(interface, direction);
    message.header.handle = handle(mark).into();
    message.header.info = u32::from(PRIORITY) << 16 | rustix::net::eth::ALL.as_raw().get();
    message.attributes.push(TcAttribute::Kind("bpf".into()));
    message
}

fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    Netlink::open(NETLINK_ROUTE)?.request(message, flags).map_err(|error| {
        match Errno::from_io_error(&error) {
            // What an interface answers that has no qdisc, or once had one.
            Some(Errno::INVAL) => io::ErrorKind::NotFound.into(),
            _ => error,
        }
    })
}

fn qdisc(interface: u32) -> TcMessage {
    let mut message = TcMessage::with_index(interface as i32);
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    message
}

fn filter(interface: u32, direction: Direction) -> TcMessage {
    let mut message = TcMessage::with_index(interface as i32);
    let minor = match direction {
        Direction::Ingress => TcHandle::MIN_INGRESS,
        Direction::Egress => TcHandle::MIN_EGRESS,
    };
    message.header.parent = TcHandle { major: TcHandle::CLSACT.major, minor };
    message
}
