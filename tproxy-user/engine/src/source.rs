//! Which source addresses an upstream socket may have, in the order in which they are tried.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::{
    config::{Action, Scope, Source},
    flow::ClientAddr,
    generation::KeptRule,
    socket::UpstreamSource,
    way::Ways,
};

/// RFC 6335: ports that nobody is assigned.
const DYNAMIC_PORTS: RangeInclusive<u16> = 49_152..=65_535;

/// Ports tried towards an application of this host.
const PORTS_TRIED: u32 = 16;

/// The sources for one connection or UDP session. The next one is asked for when one is taken.
#[derive(Debug)]
pub(crate) enum Sources {
    /// There is no other.
    One(UpstreamSource),
    /// The address that the client, who is this host, has chosen; and if it is none of this host's any more, another.
    Own(ClientAddr),
    /// The client's own address and port, and if somebody has them, another port; counted.
    ClientPort(ClientAddr),
    /// The client's address towards an application of this host.
    ///
    /// The kernel must not choose the port: it knows which ports sockets of *ours* with this local address have, not
    /// which ones the client has. A connection from a port that the client itself uses towards the application would
    /// meet the client's connection, ours or not, and reset it.
    Mirrored { client: ClientAddr, tries_left: u32 },
}

impl Sources {
    fn of(rule: &KeptRule, client: ClientAddr) -> Self {
        if let Some(source) = rule.treatment.egress.source {
            return Self::One(UpstreamSource::Own(source));
        }
        match (rule.treatment.source, rule.reach.scope) {
            // Rules of routing may go by it.
            (Source::Host, Scope::Outbound) if rule.treatment.action == Action::Direct => Self::Own(client),
            (Source::Host, _) => Self::One(UpstreamSource::Host),
            (_, Scope::Inbound) => Self::Mirrored { client, tries_left: PORTS_TRIED },
            (Source::Client, _) => Self::One(UpstreamSource::Client(client.0.ip())),
            (Source::ClientPort, _) => Self::ClientPort(client),
        }
    }

    /// Those where NAT of this host may change the source. With the client's port, connection tracking would see one 4-tuple
    /// twice, the client's connection to us and ours to the upstream, and translate neither.
    fn behind_nat(self, fallbacks: &AtomicU64) -> Self {
        match self {
            Self::ClientPort(client) => {
                fallbacks.fetch_add(1, Relaxed);
                Self::One(UpstreamSource::Client(client.0.ip()))
            }
            other => other,
        }
    }

    /// Those towards `to`, if there is only one peer.
    pub(crate) fn towards(
        to: Option<IpAddr>,
        rule: &KeptRule,
        client: ClientAddr,
        ways: &Ways,
        fallbacks: &AtomicU64,
    ) -> Self {
        if rule.treatment.is_spoofed() && to.is_some_and(|to| ways.is_redirected(rule, to)) {
            fallbacks.fetch_add(1, Relaxed);
            return Self::One(UpstreamSource::Host);
        }
        let sources = Self::of(rule, client);
        if ways.translates_sources() { sources.behind_nat(fallbacks) } else { sources }
    }

    /// `is_clients` says whether the client uses an address and port towards the upstream.
    pub(crate) fn first(&mut self, is_clients: impl FnMut(SocketAddr) -> bool) -> UpstreamSource {
        match self {
            Self::One(source) => *source,
            Self::Own(client) => UpstreamSource::Own(client.0.ip()),
            Self::ClientPort(client) => UpstreamSource::ClientPort(client.0),
            Self::Mirrored { client, tries_left } => {
                *tries_left -= 1;
                UpstreamSource::ClientPort(free_port(*client, is_clients))
            }
        }
    }

    pub(crate) fn next(
        &mut self,
        fallbacks: &AtomicU64,
        is_clients: impl FnMut(SocketAddr) -> bool,
    ) -> Option<UpstreamSource> {
        match self {
            Self::One(_) | Self::Mirrored { tries_left: 0, .. } => None,
            Self::Own(_) => {
                fallbacks.fetch_add(1, Relaxed);
                *self = Self::One(UpstreamSource::Host);
                Some(self.first(is_clients))
            }
            Self::ClientPort(client) => {
                fallbacks.fetch_add(1, Relaxed);
                *self = Self::One(UpstreamSource::Client(client.0.ip()));
                Some(self.first(is_clients))
            }
            Self::Mirrored { .. } => Some(self.first(is_clients)),
        }
    }
}

/// A random port of the client's address that the client does not use itself.
fn free_port(client: ClientAddr, mut is_clients: impl FnMut(SocketAddr) -> bool) -> SocketAddr {
    // Each state is seeded anew.
    let random = || RandomState::new().hash_one(());
    let span = u64::from(DYNAMIC_PORTS.end() - DYNAMIC_PORTS.start()) + 1;
    let candidate = || SocketAddr::new(client.0.ip(), DYNAMIC_PORTS.start() + (random() % span) as u16);
    let free = (1..PORTS_TRIED).map(|_| candidate()).find(|candidate| !is_clients(*candidate));
    free.unwrap_or_else(candidate)
}
