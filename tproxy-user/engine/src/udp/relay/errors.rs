//! What became of what we sent, in terms of what the client sent.

use std::{io, net::IpAddr, time::Instant};

use super::{
    super::{
        counters::add,
        table::{Flow, SessionId},
    },
    Command, Relay,
};
use crate::{
    family::Family,
    flow::OriginalDst,
    socket::{IcmpError, PeerError},
};

/// Bytes by which the header of IPv6 is longer than that of IPv4.
const HEADERS_DIFFER: u16 = 20;

impl Relay {
    /// What a session's own upstream socket sent did not arrive: so it is with what the client sent.
    pub(in super::super) fn session_error(&mut self, id: SessionId, error: &PeerError, now: Instant) {
        if let Some((flow, _)) = self.table.get_mut(id) {
            let flow = *flow;
            self.notify(&flow, error, now);
        }
    }

    /// The same of a mapping's; `sent` is whose datagram was the last that did not even leave.
    pub(in super::super) fn mapping_error(
        &mut self,
        index: u32,
        sent: Option<SessionId>,
        error: &PeerError,
        now: Instant,
    ) {
        let flow = if error.peer.port() == 0 {
            // It did not leave, and of IPv4 the kernel notes no port then.
            sent.and_then(|id| self.table.get_mut(id)).map(|(flow, _)| *flow)
        } else {
            let mapping = self.mappings.get(index);
            mapping.map(|mapping| Flow { client: mapping.sharing.client, dst: OriginalDst(error.peer) })
        };
        if let Some(flow) = flow {
            self.notify(&flow, error, now);
        }
    }

    /// This host itself knows no way to the upstream.
    pub(super) fn failed(&mut self, flow: &Flow, error: &io::Error, now: Instant) {
        let told = match error.kind() {
            io::ErrorKind::NetworkUnreachable => IcmpError::NetUnreachable,
            io::ErrorKind::HostUnreachable => IcmpError::HostUnreachable,
            // A `prohibit` route or a firewall of this host.
            io::ErrorKind::PermissionDenied => IcmpError::AdminProhibited,
            _ => return,
        };
        self.tell(flow.dst.0.ip(), told, flow, now);
    }

    fn notify(&mut self, flow: &Flow, error: &PeerError, now: Instant) {
        let (reporter, told) = in_terms_of(flow, error);
        self.tell(reporter, told, flow, now);
    }

    fn tell(&mut self, reporter: IpAddr, error: IcmpError, flow: &Flow, now: Instant) {
        if self.allowed.notices.allows(now) {
            self.commands.push_back(Command::Notify { reporter, error, flow: *flow });
        } else {
            add(&self.books.counters.icmp_suppressed, 1);
        }
    }
}

/// Who tells a client of an error, and what.
fn in_terms_of(flow: &Flow, error: &PeerError) -> (IpAddr, IcmpError) {
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
    (reporter, told)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::flow::ClientAddr;

    const ERRORS: [IcmpError; 6] = [
        IcmpError::PortUnreachable,
        IcmpError::HostUnreachable,
        IcmpError::NetUnreachable,
        IcmpError::AdminProhibited,
        IcmpError::PacketTooBig { mtu: 1400 },
        IcmpError::TimeExceeded,
    ];

    fn addresses(family: Family) -> [SocketAddr; 4] {
        let of = |v4: &str, v6: &str| match family {
            Family::V4 => SocketAddr::new(v4.parse().unwrap(), 9),
            Family::V6 => SocketAddr::new(v6.parse().unwrap(), 9),
        };
        [
            of("10.0.0.2", "fd00::2"),
            of("8.8.8.8", "2001:db8::8"),
            of("10.9.9.9", "fd09::9"),
            of("1.1.1.1", "2001:db8::1"),
        ]
    }

    #[test]
    fn every_error_is_told_by_somebody_of_the_clients_family() {
        for (of_client, of_upstream) in
            Family::BOTH.iter().flat_map(|one| Family::BOTH.map(|other| (*one, other)))
        {
            let [client, dst, ..] = addresses(of_client);
            let [_, _, upstream, router] = addresses(of_upstream);
            let flow = Flow { client: ClientAddr(client), dst: OriginalDst(dst) };
            for error in ERRORS {
                let (reporter, told) =
                    in_terms_of(&flow, &PeerError { peer: upstream, reporter: router.ip(), error });
                let is_routers = matches!(error, IcmpError::TimeExceeded | IcmpError::AdminProhibited);
                let by_router = is_routers && of_client == of_upstream;
                assert_eq!(reporter, if by_router { router.ip() } else { dst.ip() }, "{error:?}");
                let expected = match (error, of_client, of_upstream) {
                    (IcmpError::PacketTooBig { .. }, Family::V4, Family::V6) => {
                        IcmpError::PacketTooBig { mtu: 1380 }
                    }
                    (IcmpError::PacketTooBig { .. }, Family::V6, Family::V4) => {
                        IcmpError::PacketTooBig { mtu: 1420 }
                    }
                    (error, ..) => error,
                };
                assert_eq!(told, expected);
            }
        }
    }
}
