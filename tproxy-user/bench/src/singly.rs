//! What our relay of datagrams is compared with: the same sockets, and one system call to receive and one to send for each
//! datagram, as relays are that use none of the kernel's offloads.

use std::{collections::HashMap, io, net::UdpSocket, os::fd::OwnedFd, thread};

use anyhow::Context as _;
use nix::sys::socket::{setsockopt, sockopt};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use socket2::Socket;
use tproxy::{
    config::{Config, Source},
    family::Family,
    flow::{ClientAddr, OriginalDst},
    socket::{self, DatagramReceiver, Endpoint, UpstreamSource},
};

use super::{relay::ready, steering::Listeners};

/// Datagrams of one socket before others have their turn.
const TURN: usize = 32;
/// The listener's, before those of the sessions.
const LISTENER: u64 = 0;

/// Relays datagrams that somebody else steers, on as many threads as the configuration has workers.
///
/// # Errors
/// Whatever keeps it from relaying.
pub fn singly(config: &Config) -> anyhow::Result<()> {
    let listeners = (0..config.workers)
        .map(|_| socket::datagram_listener(Family::V4, config.mark))
        .collect::<Result<Vec<_>, _>>()?;
    ready(&Listeners {
        tcp: Vec::new(),
        udp: listeners.iter().map(super::relay::port).collect::<Result<_, _>>()?,
    })?;
    thread::scope(|scope| {
        let relays: Vec<_> = listeners
            .into_iter()
            .map(|listener| scope.spawn(|| SinglyRelay::new(listener, config)?.serve()))
            .collect();
        relays
            .into_iter()
            .try_for_each(|relay| relay.join().map_err(|_| anyhow::anyhow!("a relay panicked"))?)
    })
}

struct SinglyRelay<'a> {
    config: &'a Config,
    listener: Socket,
    epoll: OwnedFd,
    sessions: Vec<RelayedPair>,
    by_flow: HashMap<(ClientAddr, OriginalDst), usize>,
}

/// Two connected sockets: towards the client, and towards the server.
struct RelayedPair([UdpSocket; 2]);

impl<'a> SinglyRelay<'a> {
    fn new(listener: Socket, config: &'a Config) -> anyhow::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        Ok(Self { config, listener, epoll, sessions: Vec::new(), by_flow: HashMap::new() })
    }

    fn serve(mut self) -> anyhow::Result<()> {
        let mut receiver = DatagramReceiver::default();
        let mut buffer = vec![0; 1 << 16];
        let mut events = Vec::<Event>::with_capacity(64);
        loop {
            events.clear();
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None)?;
            for event in &events {
                match event.data.u64().checked_sub(LISTENER + 1) {
                    None => self.begin(&mut receiver)?,
                    Some(place) => self.relay(place as usize, &mut buffer),
                }
            }
        }
    }

    /// Takes the first datagrams of flows.
    fn begin(&mut self, receiver: &mut DatagramReceiver) -> anyhow::Result<()> {
        let mut failed = None;
        let Self { config, listener, epoll, sessions, by_flow } = self;
        receiver.recv(listener, |datagram| {
            let flow = (datagram.client, datagram.dst);
            let index = match by_flow.get(&flow) {
                Some(index) => *index,
                None => match RelayedPair::open(flow, config, epoll, sessions.len()) {
                    Ok(session) => {
                        sessions.push(session);
                        by_flow.insert(flow, sessions.len() - 1);
                        sessions.len() - 1
                    }
                    Err(error) => return failed = Some(error),
                },
            };
            let RelayedPair([_, upstream]) = &sessions[index];
            // What the kernel does not take is lost.
            let _ = upstream.send(datagram.payload);
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Relays what one socket has. What fails is lost, as datagrams are.
    fn relay(&self, place: usize, buffer: &mut [u8]) {
        let RelayedPair(sockets) = &self.sessions[place / 2];
        let (from, to) = (&sockets[place % 2], &sockets[1 - place % 2]);
        for _ in 0..TURN {
            let Ok(length) = from.recv(buffer) else { return };
            let _ = to.send(&buffer[..length]);
        }
    }
}

impl RelayedPair {
    fn open(
        (client, dst): (ClientAddr, OriginalDst),
        config: &Config,
        epoll: &OwnedFd,
        index: usize,
    ) -> anyhow::Result<Self> {
        let rule = config.rules.last().context("flags make a rule")?;
        let source = match rule.treatment.source {
            Source::Host => UpstreamSource::Host,
            Source::Client | Source::ClientPort => UpstreamSource::Client(client.0.ip()),
        };
        let upstream = socket::datagram_upstream(Endpoint::Peer(dst.0), source, config.mark)?;
        let sockets = [socket::session(dst, client, config.mark)?, upstream];
        for (side, socket) in (0..).zip(&sockets) {
            setsockopt(socket, sockopt::UdpGroSegment, &false).map_err(io::Error::from)?;
            let place = LISTENER + 1 + 2 * index as u64 + side;
            epoll::add(epoll, socket, EventData::new_u64(place), EventFlags::IN)?;
        }
        Ok(Self(sockets.map(UdpSocket::from)))
    }
}
