//! What the scenarios share.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::ExitStatus,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use socket2::SockRef;
pub(crate) use tproxy_netns::{Family, Namespace, Nginx, PATIENCE, Proc, Topology, Tproxy};

/// Both steering engines.
pub(crate) const ENGINES: [&str; 2] = ["sk_lookup", "sk_assign"];
/// Flags of the rule that says everything, as seen from the gateway's client side.
pub(crate) const FORWARDED: &str = "--scope forwarded --interface lan --to 0.0.0.0/0 --to ::/0";

/// A network, a real web server on its server, and a gateway to run `tproxy` on.
pub(crate) struct World {
    pub(crate) nginx: Nginx,
    pub(crate) net: Topology,
}

impl World {
    /// Over veth.
    pub(crate) fn new() -> Self {
        Self::on(Topology::three())
    }

    /// With an L3 tun device on the client's side.
    pub(crate) fn l3() -> Self {
        Self::on(Topology::three_l3())
    }

    fn on(net: Result<Topology, tproxy_netns::Error>) -> Self {
        let net = net.unwrap_or_else(|error| panic!("{error}"));
        let nginx = Nginx::start(&net.server).unwrap_or_else(|error| panic!("{error}"));
        Self { nginx, net }
    }

    /// `tproxy run ARGS` on the gateway.
    #[track_caller]
    pub(crate) fn tproxy(&self, args: &str) -> Tproxy {
        tproxy_in(&self.net.gateway, args)
    }

    /// What the client gets from `http://ADDRESS:PORT/`.
    #[track_caller]
    pub(crate) fn curl(&self, address: IpAddr, port: u16) -> Curl {
        curl(&self.net.client, "", address, port)
    }
}

/// The binary under test.
pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_tproxy"))
}

/// `tproxy run ARGS` in a namespace, ready.
#[track_caller]
pub(crate) fn tproxy_in(namespace: &Namespace, args: &str) -> Tproxy {
    Tproxy::start(namespace, binary(), args).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs `tproxy ARGS` to its end, which has to come.
#[track_caller]
pub(crate) fn tproxy_output(namespace: &Namespace, args: &str) -> Ended {
    let mut proc = namespace
        .start(&format!("{} {args}", binary().display()))
        .unwrap_or_else(|error| panic!("tproxy {args}: {error}"));
    let status = proc.wait(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    Ended { status, said: proc.lines().join("\n") }
}

/// How many flows each rule of the instance in a namespace has decided.
#[track_caller]
pub(crate) fn hits(namespace: &Namespace) -> Vec<u64> {
    let said = tproxy_output(namespace, "rules --json").said;
    let rules: serde_json::Value =
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    let rules = rules.as_array().unwrap_or_else(|| panic!("{said}"));
    rules.iter().map(|rule| rule["hits"].as_u64().unwrap_or_else(|| panic!("{said}"))).collect()
}

/// How a program ended, and all it wrote.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) said: String,
}

/// What curl said.
#[derive(Debug)]
pub(crate) struct Curl {
    /// curl's exit code: 0 fine, 7 refused, 28 timed out, 52 empty answer, 56 reset.
    pub(crate) code: Option<i32>,
    pub(crate) body: String,
    #[expect(dead_code, reason = "a failed assertion shows it")]
    stderr: String,
}

/// `PREFIX curl http://ADDRESS:PORT/`, where PREFIX is a command such as `setpriv …`, or curl's own flags.
#[track_caller]
pub(crate) fn curl(namespace: &Namespace, prefix: &str, address: IpAddr, port: u16) -> Curl {
    let (wrapper, flags) = if prefix.starts_with('-') { ("", prefix) } else { (prefix, "") };
    let url = format!("http://{}/", SocketAddr::new(address, port));
    let line = format!("{wrapper} curl -sS --max-time {} {flags} {url}", PATIENCE.as_secs());
    let mut words = line.split_whitespace();
    let program = words.next().unwrap_or("curl");
    for tool in [program, "curl"] {
        tproxy_netns::require_tool(tool).unwrap_or_else(|error| panic!("{error}"));
    }
    let output =
        namespace.command(program).args(words).output().unwrap_or_else(|error| panic!("{line}: {error}"));
    Curl {
        code: output.status.code(),
        body: String::from_utf8_lossy(&output.stdout).into(),
        stderr: String::from_utf8_lossy(&output.stderr).into(),
    }
}

impl Curl {
    /// Asserts that nginx answered on `server`, and saw `client` as the source.
    #[track_caller]
    pub(crate) fn assert_nginx(&self, server: SocketAddr, client: IpAddr, context: &dyn std::fmt::Display) {
        // nginx writes IPv6 addresses bare.
        let start = format!("server {}:{} saw {client}:", server.ip(), server.port());
        assert!(self.body.starts_with(&start), "expected '{start}…', got {self:?}\n{context}");
    }

    /// Asserts an answer by its text.
    #[track_caller]
    pub(crate) fn assert_body(&self, body: &str, context: &dyn std::fmt::Display) {
        assert_eq!((self.code, self.body.trim_end()), (Some(0), body), "{self:?}\n{context}");
    }
}

/// A listener in a namespace whose every connection runs `serve` on a thread of its own.
/// It ends with the test process; its namespace does not wait for it.
#[track_caller]
pub(crate) fn serve(
    namespace: &Namespace,
    address: impl Into<SocketAddr>,
    serve: impl Fn(TcpStream) + Send + Clone + 'static,
) {
    let listener = listen(namespace, address);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
}

/// A listener in a namespace.
#[track_caller]
pub(crate) fn listen(namespace: &Namespace, address: impl Into<SocketAddr>) -> TcpListener {
    let address = address.into();
    namespace.enter(|| TcpListener::bind(address)).unwrap_or_else(|error| panic!("{address}: {error}"))
}

/// Accepts one connection, within [`PATIENCE`].
#[track_caller]
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    // SO_RCVTIMEO bounds accept(2) too (socket(7)).
    SockRef::from(listener).set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    let (stream, _) = listener.accept().unwrap_or_else(|error| panic!("nobody connected: {error}"));
    patient(stream)
}

/// Connects from a namespace; neither this nor later reads and writes can hang.
pub(crate) fn connect(namespace: &Namespace, to: impl Into<SocketAddr>) -> io::Result<TcpStream> {
    connect_within(namespace, to, PATIENCE)
}

/// [`connect`] with its own time limit.
pub(crate) fn connect_within(
    namespace: &Namespace,
    to: impl Into<SocketAddr>,
    limit: Duration,
) -> io::Result<TcpStream> {
    let to = to.into();
    namespace.enter(|| TcpStream::connect_timeout(&to, limit)).map(patient)
}

/// A UDP socket in a namespace, with which nothing can hang.
#[track_caller]
pub(crate) fn datagrams(namespace: &Namespace, address: impl Into<SocketAddr>) -> UdpSocket {
    let address = address.into();
    let socket = namespace.datagrams(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    socket.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    socket
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    stream.set_write_timeout(Some(PATIENCE)).expect("SO_SNDTIMEO");
    stream
}

/// How a socket address begins that has this IP address.
pub(crate) fn seen_as(address: IpAddr) -> String {
    SocketAddr::new(address, 0).to_string().trim_end_matches('0').to_owned()
}

/// Sends back whatever comes.
pub(crate) fn echo(stream: TcpStream) {
    let mut reader = stream.try_clone().expect("dup");
    let mut writer = stream;
    // The peer's reset is an end like any other here.
    let _ended = io::copy(&mut reader, &mut writer);
}

/// Asserts that the connection carries `text` there and back.
#[track_caller]
pub(crate) fn assert_echo(mut stream: &TcpStream, text: &str, context: &dyn std::fmt::Display) {
    let mut back = vec![0; text.len()];
    stream
        .write_all(text.as_bytes())
        .and_then(|()| stream.read_exact(&mut back))
        .unwrap_or_else(|error| panic!("{text}: {error}\n{context}"));
    assert_eq!(String::from_utf8_lossy(&back), text, "{context}");
}

/// Closes with RST.
pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
}

/// Runs `work` for each row at the same time; a panic names its row by itself.
pub(crate) fn each_at_once<T: Send, R: Send>(
    rows: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = rows.into_iter().map(|row| scope.spawn(move || work(row))).collect();
        threads.into_iter().map(join_scoped).collect()
    })
}

fn join_scoped<R>(thread: thread::ScopedJoinHandle<'_, R>) -> R {
    thread.join().unwrap_or_else(|reason| std::panic::resume_unwind(reason))
}

/// The SYNs and segments a namespace had to send again.
pub(crate) fn retransmitted(namespace: &Namespace) -> u64 {
    tcp_counter(namespace, "RetransSegs")
}

/// Asserts that a connection is refused, and that the first SYN was answered so.
#[track_caller]
pub(crate) fn assert_refused_at_once(
    namespace: &Namespace,
    to: impl Into<SocketAddr>,
    context: &dyn std::fmt::Display,
) {
    let (to, before) = (to.into(), retransmitted(namespace));
    let outcome = connect(namespace, to).map_err(|error| error.kind());
    assert_eq!(outcome.err(), Some(io::ErrorKind::ConnectionRefused), "{to}\n{context}");
    assert_eq!(retransmitted(namespace), before, "{to}: a SYN was sent again\n{context}");
}

/// Sets a flag at its end, which a panic may be: threads that look at it would go on, and `thread::scope` waits for them.
pub(crate) struct SetAtEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A counter of a namespace's TCP, of both families.
pub(crate) fn tcp_counter(namespace: &Namespace, name: &str) -> u64 {
    // thread-self: /proc/net is the main thread's namespace.
    let text = namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).expect("snmp");
    let mut rows = text.lines().filter(|line| line.starts_with("Tcp:"));
    let names = rows.next().expect("names").split_whitespace();
    let values = rows.next().expect("values").split_whitespace();
    let (_, value) = names.zip(values).find(|(found, _)| *found == name).expect(name);
    value.parse().expect("a number")
}

/// Stops `tproxy` and returns the counter it writes at its end as `NAME=NUMBER`.
#[track_caller]
pub(crate) fn counted_at_the_end(tproxy: &mut Tproxy, name: &str) -> u64 {
    tproxy.signal(rustix::process::Signal::TERM);
    tproxy.wait(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    let lines = tproxy.lines();
    let mut words = lines.iter().rev().flat_map(|line| line.split_whitespace());
    words
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        .unwrap_or_else(|| panic!("no counter {name}\n{}", **tproxy))
}

/// A bridge `br0` with the port `gw-port`.
pub(crate) fn add_port(namespace: &Namespace) {
    namespace
        .ip("link add br0 type bridge\nlink add gw-port type veth peer name port-peer\nlink set gw-port master br0")
        .unwrap();
}

/// Waits for something to become so.
#[track_caller]
pub(crate) fn eventually(context: &dyn std::fmt::Display, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "it does not become so\n{context}");
    }
}
