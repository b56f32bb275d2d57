//! A worker whose listener clients connect to as if it had been steered to.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use tproxy_common::abi::Origin;

use crate::{
    config::{Action, Config, Rule, Scope, Source, Timeouts, Treatment},
    family::Family,
    flow::{ClientAddr, OriginalDst},
    flows::{Filter, Flows, LiveFlow},
    generation::{Generation, Generations, RuleNumber},
    mark::Mark,
    socket,
    tcp::{Decided, Decisions, End, Setup, Snapshot, Syn, TcpCounters},
    way::Routing,
    worker::{Worker, WorkerSetup},
};

/// No test waits longer than this for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Always(pub(super) Option<RuleNumber>);

impl Decisions for Always {
    fn take(&mut self, _: ClientAddr, _: OriginalDst) -> Option<Decided> {
        self.0.map(|rule| Decided { rule, origin: Origin::default() })
    }

    fn admit(&mut self, _: &Syn) {}

    fn leave_alone(&mut self, _: &Syn) {}

    fn release(&mut self, _: ClientAddr, _: OriginalDst) {}

    fn reached(&mut self, _: OriginalDst, _: Duration) {}

    fn unreached(&mut self, _: OriginalDst) {}
}

pub(super) struct Rig {
    pub(super) worker: Worker,
    pub(super) address: SocketAddr,
    pub(super) flows: Flows,
    counters: Arc<TcpCounters>,
}

pub(super) fn rule(action: Action, source: Source) -> Rule {
    Rule::new("test", Scope::Forwarded, Treatment { source, ..action.into() })
}

pub(super) const TIMEOUTS: Timeouts = Timeouts::all(PATIENCE);

/// A single rule.
pub(super) fn generations(rule: Rule, timeouts: Timeouts) -> Generations {
    let config = Config { timeouts, ..Config::new(vec![rule]) };
    Generations::of(Generation::first(&config, Arc::default()))
}

/// The same rule, treated otherwise.
pub(super) fn change(setup: &mut Setup, change: impl FnOnce(&mut Treatment)) {
    let mut treatment = setup.generations.latest().rules()[0].treatment.clone();
    change(&mut treatment);
    setup.generations = generations(Rule::new("test", Scope::Forwarded, treatment), TIMEOUTS);
}

impl Rig {
    pub(super) fn new(action: Action) -> Self {
        Self::with(action, |_| {})
    }

    pub(super) fn with(action: Action, change: impl FnOnce(&mut Setup)) -> Self {
        let listener = socket::listener(Family::V4, Mark::DEFAULT).expect("root");
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let counters = Arc::new(TcpCounters::default());
        let flows = Flows::of_workers(1);
        let mut setup = Setup {
            listeners: vec![listener],
            bound: Arc::new([]),
            generations: generations(rule(action, Source::Host), TIMEOUTS),
            mark: Mark::DEFAULT,
            routing: Routing::default(),
            decisions: Box::new(Always(Some(RuleNumber(0)))),
            counters: Arc::clone(&counters),
            syns: None,
            flows: flows.table(0),
        };
        change(&mut setup);
        let worker = Worker::spawn(WorkerSetup {
            index: 0,
            workers: 1,
            tcp: setup,
            udp: None,
            beat: None,
            upkeep: None,
        })
        .unwrap();
        Self { worker, address, flows, counters }
    }

    pub(super) fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// A client and the server that it is connected to through the worker.
    pub(super) fn pair(&self, server: &TcpListener) -> (TcpStream, TcpStream) {
        let client = self.client();
        let (upstream, _) = server.accept().unwrap();
        upstream.set_read_timeout(Some(PATIENCE)).unwrap();
        (client, upstream)
    }

    /// Waits until the only connection is as it should be.
    pub(super) fn until(&self, condition: impl Fn(&LiveFlow) -> bool) -> Arc<LiveFlow> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let flows = self.flows.select(&Filter::default());
            if let [flow] = &flows[..]
                && condition(flow)
            {
                return Arc::clone(flow);
            }
            assert!(Instant::now() < deadline, "{flows:?}");
            thread::yield_now();
        }
    }

    pub(super) fn counted(&self) -> Snapshot {
        self.counters.snapshot()
    }

    /// Waits for all connections to end, and tells what was counted.
    pub(super) fn finish(self) -> Snapshot {
        wait(self.worker.liveness().none());
        self.worker.stop_now();
        self.worker.join().unwrap();
        self.counters.snapshot()
    }

    /// The same for a single connection, and how it ended.
    pub(super) fn assert_end(self, end: End) -> Snapshot {
        let snapshot = self.finish();
        assert_eq!((snapshot.accepted, snapshot.ended(end)), (1, 1), "{snapshot}");
        snapshot
    }
}

/// A server, and a worker that sends everybody there.
pub(super) fn upstream() -> (Rig, TcpListener) {
    upstream_with(|_| {})
}

pub(super) fn upstream_with(change: impl FnOnce(&mut Setup)) -> (Rig, TcpListener) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    (Rig::with(Action::Upstream(server.local_addr().unwrap().into()), change), server)
}

pub(super) fn wait<T>(event: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, event).await.expect("it happens in time") })
}

/// Waits for a reset without reading what came before it.
pub(super) fn wait_for_reset(stream: &TcpStream) {
    let mut fds = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::empty())];
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&patience)).unwrap(), 1, "no reset came");
    assert!(fds[0].revents().contains(PollFlags::ERR), "{:?}", fds[0].revents());
}

/// Asserts that the next thing to be read is a reset.
pub(super) fn assert_reset(mut stream: TcpStream) {
    let error = stream.read(&mut [0]).expect_err("a reset and no data");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

pub(super) fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Writes until nobody on the way to the peer, which does not read, takes any more.
pub(super) fn write_until_stuck(mut stream: &TcpStream) {
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    loop {
        match stream.write(&[7; 65536]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        }
    }
}
