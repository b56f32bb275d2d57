//! ICMP errors about what we sent become ICMP errors about what the client sent.

use std::{io, net::IpAddr, time::Instant};

use socket2::Socket;

use super::{UdpCounters, counters::add, mapping::Mapping, rate::Rate, table::Flow};
use crate::{
    family::Family,
    flow::OriginalDst,
    socket::{self, IcmpError, IcmpSender, PeerError},
};

/// ICMP errors to clients in one second.
const PER_SECOND: u32 = 1000;

/// Errors taken off a socket in one go.
const AT_ONCE: usize = 64;

/// Bytes by which the header of IPv6 is longer than that of IPv4.
const HEADERS_DIFFER: u16 = 20;

/// Who tells clients about errors.
pub(super) struct Reporter {
    senders: Vec<(Family, IcmpSender)>,
    rate: Rate,
}

/// Errors that a socket has to tell.
pub(super) fn of(socket: &Socket) -> impl Iterator<Item = PeerError> {
    // An error of reading says that there is none, or none that could be understood.
    std::iter::from_fn(move || socket::next_error(socket).ok().flatten()).take(AT_ONCE)
}

impl Reporter {
    pub(super) fn new(senders: Vec<(Family, IcmpSender)>) -> Self {
        Self { senders, rate: Rate::new(PER_SECOND, Instant::now()) }
    }

    /// Tells a client that what it sent to its original destination failed as what we sent did.
    pub(super) fn report(&mut self, flow: &Flow, error: &PeerError, counters: &UdpCounters, now: Instant) {
        let (client, dst) = (flow.client.0.ip(), flow.dst.0.ip());
        let other_family = Family::of(error.peer.ip()) != Family::of(client);
        let reporter = match error.error {
            IcmpError::TimeExceeded | IcmpError::AdminProhibited if !other_family => error.reporter,
            // The client knows nothing of the upstream's other address.
            _ => dst,
        };
        let told = match (error.error, client) {
            (IcmpError::PacketTooBig { mtu }, IpAddr::V4(_)) if other_family => {
                IcmpError::PacketTooBig { mtu: mtu.saturating_sub(HEADERS_DIFFER) }
            }
            (IcmpError::PacketTooBig { mtu }, IpAddr::V6(_)) if other_family => {
                IcmpError::PacketTooBig { mtu: mtu.saturating_add(HEADERS_DIFFER) }
            }
            (error, _) => error,
        };
        self.send(reporter, told, flow, counters, now);
    }

    /// Tells a client of all errors of its mapping; `sent` is whose datagram was the last that did not even leave.
    pub(super) fn report_all(
        &mut self,
        mapping: &Mapping,
        sent: Option<&Flow>,
        counters: &UdpCounters,
        now: Instant,
    ) {
        for error in of(&mapping.socket.channel.socket) {
            let flow = match (error.peer.port(), sent) {
                // It did not leave, and of IPv4 the kernel notes no port then.
                (0, sent) => sent.copied(),
                _ => Some(Flow { client: mapping.sharing.client, dst: OriginalDst(error.peer) }),
            };
            if let Some(flow) = flow {
                self.report(&flow, &error, counters, now);
            }
        }
    }

    /// Tells a client that this host itself knows no way to the upstream.
    pub(super) fn report_failure(
        &mut self,
        flow: &Flow,
        error: &io::Error,
        counters: &UdpCounters,
        now: Instant,
    ) {
        let told = match error.kind() {
            io::ErrorKind::NetworkUnreachable => IcmpError::NetUnreachable,
            io::ErrorKind::HostUnreachable => IcmpError::HostUnreachable,
            // A `prohibit` route or a firewall of this host.
            io::ErrorKind::PermissionDenied => IcmpError::AdminProhibited,
            _ => return,
        };
        self.send(flow.dst.0.ip(), told, flow, counters, now);
    }

    fn send(
        &mut self,
        reporter: IpAddr,
        error: IcmpError,
        flow: &Flow,
        counters: &UdpCounters,
        now: Instant,
    ) {
        let family = Family::of(flow.client.0.ip());
        let sender = self.senders.iter_mut().find(|(of, _)| *of == family);
        let Some((_, sender)) = sender.filter(|_| self.rate.allows(now)) else {
            return add(&counters.icmp_suppressed, 1);
        };
        match sender.send(reporter, error, flow.client, flow.dst) {
            Ok(()) => add(&counters.icmp_sent, 1),
            Err(_) => add(&counters.send_errors, 1),
        }
    }
}
