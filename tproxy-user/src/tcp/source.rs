//! Which source addresses an upstream socket may have, in the order in which they are tried.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    ops::RangeInclusive,
    sync::atomic::Ordering::Relaxed,
};

use super::connection::Connection;
use crate::{
    config::{Scope, Source},
    flow::ClientAddr,
    host::connections,
    socket::UpstreamSource,
};

/// RFC 6335: ports that nobody is assigned.
const DYNAMIC_PORTS: RangeInclusive<u16> = 49_152..=65_535;

/// Ports tried towards an application of this host.
const PORTS_TRIED: u32 = 16;

/// The sources for one connection. The next one is asked for when one is taken.
pub(super) enum Sources<'a> {
    /// There is no other.
    One(UpstreamSource),
    /// The client's own address and port, and if somebody has them, another port; counted.
    ClientPort(&'a Connection),
    /// The client's address towards an application of this host.
    ///
    /// The kernel must not choose the port: it knows which ports sockets of *ours* with this local address have, not
    /// which ones the client has. A connection from a port that the client itself uses towards the application would
    /// meet the client's connection, ours or not, and reset it.
    Mirrored { connection: &'a Connection, application: SocketAddr, tries_left: u32 },
}

impl<'a> Sources<'a> {
    pub(super) fn of(connection: &'a Connection, upstream: SocketAddr) -> Self {
        let rule = connection.rule();
        match (rule.source, rule.scope) {
            (Source::Host, _) => Self::One(UpstreamSource::Host),
            (_, Scope::Inbound) => {
                Self::Mirrored { connection, application: upstream, tries_left: PORTS_TRIED }
            }
            (Source::Client, _) => Self::One(UpstreamSource::Client(connection.client.0.ip())),
            (Source::ClientPort, _) => Self::ClientPort(connection),
        }
    }

    pub(super) fn first(&mut self) -> UpstreamSource {
        match self {
            Self::One(source) => *source,
            Self::ClientPort(connection) => UpstreamSource::ClientPort(connection.client.0),
            Self::Mirrored { connection: Connection { client, .. }, application, tries_left } => {
                *tries_left -= 1;
                UpstreamSource::ClientPort(SocketAddr::new(client.0.ip(), free_port(*client, *application)))
            }
        }
    }

    pub(super) fn next(&mut self) -> Option<UpstreamSource> {
        match self {
            Self::One(_) | Self::Mirrored { tries_left: 0, .. } => None,
            Self::ClientPort(connection) => {
                connection.shared.counters.source_fallbacks.fetch_add(1, Relaxed);
                *self = Self::One(UpstreamSource::Client(connection.client.0.ip()));
                Some(self.first())
            }
            Self::Mirrored { .. } => Some(self.first()),
        }
    }
}

/// A random port that the client does not use towards the application.
fn free_port(client: ClientAddr, application: SocketAddr) -> u16 {
    // Each state is seeded anew.
    let random = || RandomState::new().hash_one(());
    let span = u64::from(DYNAMIC_PORTS.end() - DYNAMIC_PORTS.start()) + 1;
    let port = || DYNAMIC_PORTS.start() + (random() % span) as u16;
    for _ in 1..PORTS_TRIED {
        let candidate = port();
        let theirs = SocketAddr::new(client.0.ip(), candidate);
        // Where the kernel cannot say, the odds are what they are.
        if !connections::exists(application, theirs).unwrap_or(false) {
            return candidate;
        }
    }
    port()
}
