//! Somebody who does what a relay asks for, in no time and without a kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tproxy_common::abi::Origin;

use super::super::{Books, Command, Given, Opening, Relay, Step, Up, Wanted, own::BUSY};
use crate::{
    config::{Config, Rule, Scope, SessionLimits, Timeouts, Treatment},
    family::Family,
    flow::{ClientAddr, OriginalDst},
    flows::Flows,
    generation::{Generation, Generations, RuleNumber},
    live::LiveCount,
    mark::Mark,
    socket::{Datagram, Egress, IcmpError, Pieces, SocketError, TrafficClass},
    udp::{
        End, Endpoints, Selected, Snapshot, UdpCounters,
        batch::Run,
        channel::Sent,
        session::Reply,
        table::{Flow, SessionId},
    },
};

pub(super) const ONE_WAY: Duration = Duration::from_secs(30);
pub(super) const TWO_WAY: Duration = Duration::from_secs(120);

/// What a listener can hold.
pub(super) const ROOM: usize = 4096;

pub(super) struct Rig {
    pub(super) relay: Relay,
    pub(super) now: Instant,
    pub(super) flows: Flows,
    pub(super) endpoints: Endpoints,
    counters: Arc<UdpCounters>,
    live: LiveCount,
    /// Sessions with sockets: whether one is the client's, and whether one is an upstream's.
    pub(super) sessions: BTreeMap<SessionId, (bool, bool)>,
    pub(super) mappings: BTreeSet<u32>,
    /// Somebody holds all ports.
    pub(super) held: bool,
    /// Sessions whose sockets towards clients are read.
    pub(super) read: BTreeSet<SessionId>,
    pub(super) told: Vec<(IpAddr, IcmpError, Flow)>,
    pub(super) forgotten: Vec<Flow>,
    pub(super) expected: Vec<Flow>,
    pub(super) ended: Vec<(Flow, End)>,
    next_port: u16,
}

pub(super) fn rule(treatment: impl Into<Treatment>) -> Rule {
    rule_of(Scope::Forwarded, treatment)
}

pub(super) fn rule_of(scope: Scope, treatment: impl Into<Treatment>) -> Rule {
    Rule::new("test", scope, treatment)
}

pub(super) fn flow(client: u8, client_port: u16, dst: u8, dst_port: u16) -> Flow {
    Flow {
        client: ClientAddr(([10, 0, 0, client], client_port).into()),
        dst: OriginalDst(([8, 8, 8, dst], dst_port).into()),
    }
}

pub(super) const HOST: [u8; 4] = [192, 0, 2, 1];

/// By the first rule there is.
pub(super) fn selected() -> Option<Selected> {
    Some(Selected::By(RuleNumber(0), Origin::default(), None))
}

/// Everything can be had.
pub(super) fn had(_: &Opening) -> Result<(), SocketError> {
    Ok(())
}

impl Rig {
    pub(super) fn new(rule: Rule) -> Self {
        Self::limited(rule, SessionLimits { total: 1000, per_client: 1000 })
    }

    pub(super) fn limited(rule: Rule, sessions: SessionLimits) -> Self {
        let timeouts = Timeouts { udp: ONE_WAY, udp_stream: TWO_WAY, ..Timeouts::all(ONE_WAY) };
        let config = Config { timeouts, sessions, ..Config::new(vec![rule]) };
        let (flows, counters, live) =
            (Flows::of_workers(1), Arc::<UdpCounters>::default(), LiveCount::default());
        let (now, endpoints) = (Instant::now(), Endpoints::default());
        let given = Given {
            bound: Arc::new([([127, 0, 0, 1], 1).into()]),
            generations: Generations::of(Generation::first(&config, Arc::default())),
            workers: 1,
            endpoints: endpoints.clone(),
            books: Books { counters: Arc::clone(&counters), flows: flows.table(0), live: live.clone() },
        };
        let mut relay = Relay::new(given, now);
        for family in Family::BOTH {
            relay.listens(family, ROOM);
        }
        Self {
            relay,
            now,
            flows,
            endpoints,
            counters,
            live,
            sessions: BTreeMap::new(),
            mappings: BTreeSet::new(),
            held: false,
            read: BTreeSet::new(),
            told: Vec::new(),
            forgotten: Vec::new(),
            expected: Vec::new(),
            ended: Vec::new(),
            next_port: 40_000,
        }
    }

    pub(super) fn counted(&self) -> Snapshot {
        self.counters.snapshot()
    }

    pub(super) fn live(&self) -> usize {
        self.live.number()
    }

    pub(super) fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    /// Does what there is to do.
    pub(super) fn carry_out(&mut self) {
        while let Some(command) = self.relay.next_command() {
            match command {
                Command::Close(id) => {
                    assert!(self.sessions.remove(&id).is_some(), "{id:?} has no sockets");
                    self.read.remove(&id);
                }
                Command::CloseMapping(index) => assert!(self.mappings.remove(&index), "{index}"),
                Command::Own(id, flow) => match self.held {
                    true => self.relay.owns_not(id, &SocketError::Taken { address: flow.dst.0 }),
                    false => {
                        let (client, _) = self.sessions.get_mut(&id).expect("a session");
                        assert!(!std::mem::replace(client, true), "{id:?} has one");
                        self.relay.owns(id);
                    }
                },
                Command::Read(id) => {
                    assert!(self.sessions.get(&id).is_some_and(|(client, _)| *client), "{id:?}");
                    assert!(self.read.insert(id), "{id:?} is read");
                }
                Command::Notify { reporter, error, flow } => self.told.push((reporter, error, flow)),
                Command::Forget(flow) => self.forgotten.push(flow),
                Command::Expect { flow, .. } => self.expected.push(flow),
                Command::WriteDown { flow, end, at, .. } => {
                    assert_eq!(at, self.now);
                    self.ended.push((flow, end));
                }
            }
        }
    }

    /// What becomes of the first datagram of a flow.
    pub(super) fn begin(
        &mut self,
        flow: Flow,
        selected: Option<Selected>,
        mut open: impl FnMut(&Opening) -> Result<(), SocketError>,
    ) -> Option<SessionId> {
        let Flow { client, dst } = flow;
        let (class, pieces, ttl) = (TrafficClass(0), Pieces::One, 64);
        let datagram = Datagram { client, dst, class, pieces, ttl, payload: b"first" };
        let mut step = self.relay.begin(&datagram, selected, self.now);
        loop {
            self.carry_out();
            step = match step {
                Step::FindWay(beginning) => {
                    self.relay.found_way(beginning, Ok(Egress::from(Mark::DEFAULT)), false, self.now)
                }
                Step::Open(opening) => match open(&opening) {
                    Ok(()) => return Some(self.opened(opening)),
                    Err(error) => self.relay.not_opened(opening, error, self.now),
                },
                Step::Carry | Step::Refused => return None,
            };
        }
    }

    fn opened(&mut self, opening: Opening) -> SessionId {
        let wanted = *opening.wanted();
        let local = matches!(wanted, Wanted::Peer(_) | Wanted::Mapping(_)).then(|| self.local(HOST));
        let id = self.relay.opened(opening, local, self.now);
        let ends = (false, matches!(wanted, Wanted::Peer(_)));
        assert!(self.sessions.insert(id, ends).is_none(), "{id:?} has sockets");
        if let Wanted::Mapping(_) = wanted {
            assert!(self.mappings.insert(self.relay.mapping_of(id).unwrap()));
        }
        self.carry_out();
        id
    }

    /// An address of an upstream socket, never the same.
    pub(super) fn local(&mut self, host: [u8; 4]) -> SocketAddr {
        self.next_port += 1;
        (host, self.next_port).into()
    }

    /// Begins a session.
    pub(super) fn session(&mut self, flow: Flow) -> SessionId {
        self.begin(flow, selected(), had).expect("a session")
    }

    /// A datagram of a client: where it went.
    pub(super) fn up(&mut self, id: SessionId, payload: &[u8]) -> Option<Up> {
        let (flow, _) = self.relay.owner(id)?;
        let up = self.relay.up(id)?;
        let run = Run::one(flow.client.0, payload);
        match up {
            Up::Own(..) => assert!(self.sessions[&id].1),
            Up::Shared(index, ..) => assert!(self.mappings.contains(&index)),
            Up::Taker => {}
            Up::Answer => {
                self.relay.asked(id, &run, self.now);
                return Some(up);
            }
        }
        self.relay.sent_up(id, &run, &sent(payload), self.now);
        self.carry_out();
        Some(up)
    }

    /// A datagram for a client.
    pub(super) fn down(&mut self, id: SessionId, payload: &[u8], sent: &Sent) {
        let Some(down) = self.relay.down(id) else { return };
        assert_eq!(down.reply == Reply::Own, self.sessions[&id].0);
        self.relay.sent_down(id, &Run::one(down.flow.dst.0, payload), sent, self.now);
        self.carry_out();
    }

    /// Many datagrams of a client, one after the other: as many as make a session busy.
    pub(super) fn be_busy(&mut self, id: SessionId) {
        for _ in 0..BUSY {
            self.up(id, b"x");
        }
    }

    /// A second has passed: who is quiet has no socket of its own any more.
    pub(super) fn next_second(&mut self) {
        for id in self.relay.next_second() {
            self.relay.gives_back(id);
            let (client, _) = self.sessions.get_mut(&id).expect("a session");
            assert!(std::mem::replace(client, false), "{id:?} has none");
            self.read.remove(&id);
        }
        self.carry_out();
    }

    /// Ends what is over, of which there is no more.
    pub(super) fn sweep(&mut self, draining: bool) {
        while let Some((id, end)) = self.relay.next_silent(draining, self.now) {
            self.relay.end(id, end, self.now);
        }
        while let Some(id) = self.relay.next_answered() {
            self.relay.end(id, End::Answered, self.now);
        }
        self.carry_out();
    }
}

/// It went as it should.
pub(super) fn sent(payload: &[u8]) -> Sent {
    let mut sent = Sent::default();
    sent.count(1, payload.len(), Ok(()));
    sent
}

pub(super) fn failed(errno: i32) -> Sent {
    let mut sent = Sent::default();
    sent.count(1, 1, Err(std::io::Error::from_raw_os_error(errno)));
    sent
}

/// A place that nothing has.
pub(super) fn lack(errno: i32) -> SocketError {
    SocketError::Os { step: "socket", source: std::io::Error::from_raw_os_error(errno) }
}
