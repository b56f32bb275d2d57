//! A worker on the gateway.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tproxy_common::abi::Origin;
use tproxy_netns::Topology;

use crate::{
    config::{Config, Rule, Scope, SessionLimits, Timeouts, Treatment},
    family::Family,
    flow::{ClientAddr, OriginalDst},
    flows::Flows,
    generation::{Generation, Generations, RuleNumber},
    mark::Mark,
    socket::{self, Message, Outgoing, TrafficClass},
    tcp::{self, Decided, Syn, TcpCounters},
    udp::{End, Endpoints, Memory, Selected, Setup, Snapshot, Sockets, UdpCounters},
    way::Routing,
    worker::{Worker, WorkerSetup},
};

/// No test waits longer than this for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// What is certainly not coming does not come for this long.
pub(super) const A_WHILE: Duration = Duration::from_millis(200);

/// Where servers listen.
pub(super) const PORT: u16 = 4000;

pub(super) const TIMEOUTS: Timeouts = Timeouts::all(PATIENCE);

/// A datapath that selects every flow, and writes down what it was told to forget.
#[derive(Clone)]
pub(super) struct Everything {
    pub(super) selected: Option<Selected>,
    forgotten: Arc<Mutex<Vec<(ClientAddr, OriginalDst)>>>,
}

impl Memory for Everything {
    fn selected(&mut self, _: ClientAddr, _: OriginalDst) -> Option<Selected> {
        self.selected
    }

    fn expect(&mut self, _: ClientAddr, _: OriginalDst, _: RuleNumber, _: &Origin) {}

    fn forget(&mut self, client: ClientAddr, dst: OriginalDst) {
        self.forgotten.lock().unwrap_or_else(PoisonError::into_inner).push((client, dst));
    }
}

pub(super) struct Rig {
    pub(super) worker: Worker,
    pub(super) net: Topology,
    memory: Everything,
    pub(super) flows: Flows,
    counters: Arc<UdpCounters>,
}

pub(super) fn rule(treatment: impl Into<Treatment>) -> Rule {
    Rule::new("test", Scope::Forwarded, treatment)
}

pub(super) const SESSIONS: SessionLimits = SessionLimits { total: 1000, per_client: 1000 };

/// Rules with these limits.
pub(super) fn generations(rules: Vec<Rule>, timeouts: Timeouts, sessions: SessionLimits) -> Generations {
    let config = Config { timeouts, sessions, ..Config::new(rules) };
    Generations::of(Generation::first(&config, Arc::default()))
}

/// The same rules with other limits.
pub(super) fn limited(setup: &mut Setup, timeouts: Timeouts, sessions: SessionLimits) {
    let rules = setup.generations.latest().rules().iter().map(|kept| rule(kept.treatment.clone())).collect();
    setup.generations = generations(rules, timeouts, sessions);
}

impl Rig {
    pub(super) fn new(rule: Rule) -> Self {
        Self::with(rule, |_| {})
    }

    pub(super) fn with(rule: Rule, change: impl FnOnce(&mut Setup) + Send) -> Self {
        let net = Topology::three().expect("root");
        let memory = Everything {
            selected: Some(Selected::By(RuleNumber(0), Origin::default(), None)),
            forgotten: Arc::default(),
        };
        let counters = Arc::new(UdpCounters::default());
        let flows = Flows::of_workers(1);
        let worker = net.gateway.enter(|| {
            let open = |family| Sockets::open(family, Mark::DEFAULT).unwrap();
            let mut setup = Setup {
                sockets: Family::BOTH.map(open).into(),
                bound: Arc::new([]),
                generations: generations(vec![rule], TIMEOUTS, SESSIONS),
                workers: 1,
                mark: Mark::DEFAULT,
                routing: Routing::default(),
                endpoints: Endpoints::default(),
                memory: Box::new(memory.clone()),
                counters: Arc::clone(&counters),
                flows: flows.table(0),
            };
            change(&mut setup);
            for sockets in &setup.sockets {
                steer_to(&net, sockets);
            }
            let tcp = tcp::Setup {
                listeners: vec![],
                bound: Arc::new([]),
                generations: generations(vec![], TIMEOUTS, SESSIONS),
                mark: Mark::DEFAULT,
                routing: Routing::default(),
                decisions: Box::new(Nobody),
                counters: TcpCounters::default().into(),
                syns: None,
                flows: flows.table(0),
            };
            Worker::spawn(WorkerSetup {
                index: 0,
                workers: 1,
                tcp,
                udp: Some(setup),
                beat: None,
                upkeep: None,
            })
            .unwrap()
        });
        Self { worker, net, memory, flows, counters }
    }

    /// A client that has the gateway between itself and everybody else.
    pub(super) fn client(&self, family: tproxy_netns::Family) -> UdpSocket {
        let socket = self.net.client.enter(|| UdpSocket::bind((family.client(), 0)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// A client that hears of one server only, and of ICMP errors.
    pub(super) fn client_of(&self, server: SocketAddr) -> UdpSocket {
        let family = if server.is_ipv4() { tproxy_netns::Family::V4 } else { tproxy_netns::Family::V6 };
        let socket = self.client(family);
        socket.connect(server).unwrap();
        socket
    }

    pub(super) fn server(&self, address: IpAddr, port: u16) -> UdpSocket {
        let socket = self.net.server.enter(|| UdpSocket::bind((address, port)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// A server at the public address, and a client of it.
    pub(super) fn pair(&self, family: tproxy_netns::Family) -> (UdpSocket, UdpSocket) {
        let server = self.server(family.public(), PORT);
        (self.client_of(server.local_addr().unwrap()), server)
    }

    pub(super) fn counted(&self) -> Snapshot {
        self.counters.snapshot()
    }

    /// Waits until the counters are as they should be.
    pub(super) fn wait_until(&self, condition: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let counted = self.counted();
            if condition(&counted) {
                return counted;
            }
            assert!(Instant::now() < deadline, "{counted}");
            thread::yield_now();
        }
    }

    pub(super) fn forgotten(&self) -> Vec<(ClientAddr, OriginalDst)> {
        self.memory.forgotten.lock().unwrap().clone()
    }

    /// Waits for all sessions to end by themselves.
    pub(super) fn wait_for_the_end(&self) -> Snapshot {
        wait(self.worker.liveness().none());
        self.counted()
    }

    /// Stops the worker. What it was doing is counted by then.
    pub(super) fn stop(self) -> Snapshot {
        self.worker.stop_now();
        self.worker.join().unwrap();
        self.counters.snapshot()
    }
}

struct Nobody;

impl tcp::Decisions for Nobody {
    fn take(&mut self, _: ClientAddr, _: OriginalDst) -> Option<Decided> {
        None
    }

    fn admit(&mut self, _: &Syn) {}

    fn leave_alone(&mut self, _: &Syn) {}

    fn release(&mut self, _: ClientAddr, _: OriginalDst) {}

    fn reached(&mut self, _: OriginalDst, _: Duration) {}

    fn unreached(&mut self, _: OriginalDst) {}
}

/// What comes from the client goes to a connected socket, or else to the listener, ICMP errors to their sockets; and what comes from the server for an
/// address that is not the gateway's goes to whatever socket has it.
fn steer_to(net: &Topology, sockets: &Sockets) {
    let listener = sockets.listener().local_addr().unwrap().as_socket().unwrap();
    let (iptables, ip, icmp) = match sockets.family() {
        Family::V4 => ("iptables", "-4", "icmp"),
        Family::V6 => ("ip6tables", "-6", "ipv6-icmp"),
    };
    let to = format!("--on-ip {} --on-port {} --tproxy-mark 1/1", listener.ip(), listener.port());
    for line in [
        format!("{iptables} -t mangle -A PREROUTING -i lan -p udp -j TPROXY {to}"),
        format!("ip {ip} rule add fwmark 1/1 lookup 100"),
        format!("ip {ip} rule add iif wan lookup 100"),
        format!("ip {ip} rule add iif lan ipproto {icmp} lookup 100"),
        format!("ip {ip} route add local default dev lo table 100"),
    ] {
        net.gateway.run(&line).unwrap();
    }
}

pub(super) fn wait<T>(event: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, event).await.expect("it happens in time") })
}

/// A receive call with a timeout is not begun again after a signal (signal(7)).
pub(super) fn try_receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

pub(super) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> (usize, SocketAddr) {
    try_receive(socket, buffer).unwrap()
}

/// The client asks, the server answers.
pub(super) fn exchange(client: &UdpSocket, server: &UdpSocket) -> SocketAddr {
    client.send(b"ping").unwrap();
    let mut buffer = [0; 100];
    let (length, from) = receive(server, &mut buffer);
    assert_eq!(&buffer[..length], b"ping");
    server.send_to(b"pong", from).unwrap();
    let (length, _) = receive(client, &mut buffer);
    assert_eq!(&buffer[..length], b"pong");
    from
}

pub(super) fn assert_silent(socket: &UdpSocket) {
    socket.set_read_timeout(Some(A_WHILE)).unwrap();
    let error = try_receive(socket, &mut [0; 10]).expect_err("nothing comes");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
}

pub(super) fn assert_refused(socket: &UdpSocket) {
    let error = try_receive(socket, &mut [0; 10]).expect_err("an error and no datagram");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

/// Does it again and again until it had its effect. A socket that was closed lives on as long as a child process that
/// another test has just begun holds it too.
pub(super) fn persist(mut again: impl FnMut() -> io::Result<()>, had_its_effect: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !had_its_effect() {
        assert!(Instant::now() < deadline, "in vain");
        again().unwrap();
        thread::yield_now();
    }
}

/// Sends with a class.
pub(super) fn send_marked(socket: &UdpSocket, to: SocketAddr, class: TrafficClass, contents: &[u8]) {
    socket::send_message(socket, &Outgoing { to, class, contents, segment: None }).unwrap();
}

/// What arrives, and from whom, with its class.
pub(super) fn receive_marked(socket: &UdpSocket) -> Message {
    let told = socket2::SockRef::from(socket);
    match socket.local_addr().unwrap() {
        SocketAddr::V4(_) => told.set_recv_tos_v4(true).unwrap(),
        SocketAddr::V6(_) => told.set_recv_tclass_v6(true).unwrap(),
    }
    let deadline = Instant::now() + PATIENCE;
    let mut message = [Message::NOTHING];
    while let Err(error) = socket::receive_messages(socket, &mut [0; 100], 100, &mut message) {
        assert!(Instant::now() < deadline, "{error}");
        thread::yield_now();
    }
    message[0]
}

/// That a single session has ended in this way.
pub(super) fn assert_ended(counted: &Snapshot, end: End) {
    assert_eq!((counted.sessions, counted.active(), counted.ended(end)), (1, 0, 1), "{counted}");
}

/// A datapath that says the same of every flow.
pub(super) struct Just(pub(super) Option<Selected>);

impl Memory for Just {
    fn selected(&mut self, _: ClientAddr, _: OriginalDst) -> Option<Selected> {
        self.0
    }

    fn expect(&mut self, _: ClientAddr, _: OriginalDst, _: RuleNumber, _: &Origin) {}

    fn forget(&mut self, _: ClientAddr, _: OriginalDst) {}
}
