//! The relay between the two sockets: bytes, half-close, reset, and upstreams that fail.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use crate::support::*;

const MIB: usize = 1 << 20;

/// Both ends of one intercepted connection.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

/// The sources the upstream can see, with both families.
fn rows() -> impl Iterator<Item = (&'static str, Family)> {
    ["host", "client"].into_iter().flat_map(|source| Family::ALL.map(|family| (source, family)))
}

fn intercept(world: &World, source: &str) -> Tproxy {
    world.tproxy(&format!("{FORWARDED} --action direct --source {source}"))
}

fn pair(world: &World, family: Family, tproxy: &Tproxy) -> Pair {
    // A port of the kernel's choice: a fork elsewhere may hold the previous listener for a moment.
    let listener = listen(&world.net.server, (family.server(), 0));
    let client = connect(&world.net.client, listener.local_addr().unwrap())
        .unwrap_or_else(|error| panic!("{family:?}: {error}\n{}", **tproxy));
    let server = accept(&listener);
    assert_ne!(
        server.peer_addr().unwrap(),
        client.local_addr().unwrap(),
        "passed, not relayed\n{}",
        **tproxy
    );
    Pair { client, server }
}

/// A stream of bytes that repeats only after 2^64 - 1 words (xorshift64).
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_ne_bytes());
        }
    }
}

/// Writes `length` bytes of noise in chunks of changing size, then closes the sending half.
fn send_noise(mut stream: &TcpStream, seed: u64, length: usize) {
    let mut noise = Noise(seed);
    let mut buffer = vec![0; MIB];
    let mut left = length;
    while left > 0 {
        noise.fill(&mut buffer);
        let part = left.min(MIB);
        // Chunks of one byte up to all there is.
        let mut sent = 0;
        let mut chunk = 1;
        while sent < part {
            let end = part.min(sent + chunk);
            stream.write_all(&buffer[sent..end]).unwrap_or_else(|error| panic!("{left} bytes left: {error}"));
            sent = end;
            chunk *= 4;
        }
        left -= part;
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Reads to the end; every byte has to be the sender's.
fn check_noise(mut stream: &TcpStream, seed: u64, length: usize) {
    let mut noise = Noise(seed);
    let (mut expected, mut got) = (vec![0; MIB], vec![0; MIB]);
    let mut done = 0;
    while done < length {
        noise.fill(&mut expected);
        let part = MIB.min(length - done);
        stream.read_exact(&mut got[..part]).unwrap_or_else(|error| panic!("after {done} bytes: {error}"));
        assert!(got[..part] == expected[..part], "a byte between {done} and {} differs", done + part);
        done += part;
    }
    assert_eq!(stream.read(&mut got).unwrap(), 0, "more than was sent");
}

#[test]
fn two_hundred_and_fifty_six_mebibytes_both_ways_at_once_arrive_byte_for_byte() {
    for (source, family) in [("host", Family::V4), ("client", Family::V6)] {
        let world = World::new();
        let tproxy = intercept(&world, source);
        let Pair { client, server } = pair(&world, family, &tproxy);
        thread::scope(|scope| {
            scope.spawn(|| send_noise(&client, 1, 256 * MIB));
            scope.spawn(|| send_noise(&server, 2, 256 * MIB));
            scope.spawn(|| check_noise(&client, 2, 256 * MIB));
            scope.spawn(|| check_noise(&server, 1, 256 * MIB));
        });
        let client = client.local_addr().unwrap().to_string();
        let bytes = (256 * MIB).to_string();
        tproxy.wait_line(&[&client, &bytes], PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn curl_gets_a_big_file_from_a_real_server_byte_for_byte() {
    let world = World::new();
    let mut content = vec![0; 64 * MIB];
    Noise(4).fill(&mut content);
    world.nginx.add_file("big", &content).unwrap();
    for (source, family) in rows() {
        let tproxy = intercept(&world, source);
        let url = format!("http://{}/files/big", SocketAddr::new(family.server(), 80));
        let got = world.net.client.command("curl").args(["-sS", "--max-time", "30", &url]).output().unwrap();
        assert!(got.stdout == content, "{source} {family:?}: {} bytes\n{}", got.stdout.len(), *tproxy);
        tproxy.wait_line(&[&family.client().to_string()], PATIENCE).unwrap();
    }
}

#[test]
fn a_reader_that_stops_stops_the_writer_and_loses_nothing() {
    let world = World::new();
    let tproxy = intercept(&world, "host");
    let Pair { client, server } = pair(&world, Family::V4, &tproxy);
    client.set_nonblocking(true).unwrap();
    // Nobody reads: buffers fill, and the writer has to be told so.
    let mut noise = Noise(3);
    let mut chunk = vec![0; 64 * 1024];
    let mut accepted = Vec::new();
    let mut quiet = Instant::now();
    // Full for good once nothing more fits for half a second; until then poll(2) is the wait.
    while quiet.elapsed() < Duration::from_millis(500) {
        noise.fill(&mut chunk);
        let mut rest = &chunk[..];
        while !rest.is_empty() && quiet.elapsed() < Duration::from_millis(500) {
            match (&client).write(rest) {
                Ok(count) => {
                    accepted.extend_from_slice(&rest[..count]);
                    rest = &rest[count..];
                    quiet = Instant::now();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => wait_writable(&client),
                Err(error) => panic!("{error}\n{}", *tproxy),
            }
        }
        assert!(accepted.len() < 64 * MIB, "the relay reads without end\n{}", *tproxy);
    }
    client.set_nonblocking(false).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    (&server).read_to_end(&mut got).unwrap();
    assert!(got == accepted, "{} bytes were sent, {} came\n{}", accepted.len(), got.len(), *tproxy);
}

fn wait_writable(stream: &TcpStream) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    poll(&mut [PollFd::new(stream, PollFlags::OUT)], Some(&limit)).unwrap();
}

/// The last ACK of the upstream's handshake goes with the request, and the end of the data with the answer.
#[test]
fn what_can_go_in_one_packet_does() {
    let world = World::new();
    let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --accept at-once"));
    for family in Family::ALL {
        let listener = listen(&world.net.server, (family.server(), 0));
        // SYN and request; the answer with the FIN. A delayed ACK goes by itself when 40 ms are over, as they may be on a busy
        // machine: hence more than one attempt.
        let mut seen = Vec::new();
        let met = (0..10).any(|_| {
            seen.push(segments_of_an_exchange(&world, &listener, &tproxy));
            seen.last() == Some(&(2, 1))
        });
        assert!(met, "(to the server, to the client): {seen:?}\n{}", *tproxy);
    }
}

/// How many segments the server received until it had the request, and the client until it had the answer and its end.
fn segments_of_an_exchange(world: &World, listener: &TcpListener, tproxy: &Tproxy) -> (u64, u64) {
    // Whatever happens meanwhile, it finds all of it when it goes on.
    pause(tproxy);
    let mut client = connect(&world.net.client, listener.local_addr().unwrap()).unwrap();
    client.write_all(b"request").unwrap();
    let before = tcp_counter(&world.net.server, "InSegs");
    tproxy.signal(Signal::CONT);
    let mut server = accept(listener);
    server.read_exact(&mut [0; 7]).unwrap();
    let to_the_server = tcp_counter(&world.net.server, "InSegs") - before;

    pause(tproxy);
    server.write_all(b"answer").unwrap();
    drop(server);
    let before = tcp_counter(&world.net.client, "InSegs");
    tproxy.signal(Signal::CONT);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer", "{}", **tproxy);
    let to_the_client = tcp_counter(&world.net.client, "InSegs") - before;
    let position = tproxy.position();
    drop(client);
    tproxy.wait_line_from(position, &["closed"], PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    (to_the_server, to_the_client)
}

/// Stops a process, and waits until all of its threads have stopped.
fn pause(tproxy: &Tproxy) {
    tproxy.signal(Signal::STOP);
    let pid = Pid::from_raw(tproxy.pid() as i32).unwrap();
    waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).unwrap();
}

#[test]
fn half_close_by_the_client_leaves_the_other_way_open() {
    let world = World::new();
    for (source, family) in rows() {
        let tproxy = intercept(&world, source);
        let Pair { client, server } = pair(&world, family, &tproxy);
        assert_half_close(&client, &server, &tproxy);
    }
}

#[test]
fn half_close_by_the_server_leaves_the_other_way_open() {
    let world = World::new();
    for (source, family) in rows() {
        let tproxy = intercept(&world, source);
        let Pair { client, server } = pair(&world, family, &tproxy);
        assert_half_close(&server, &client, &tproxy);
    }
}

/// `first` closes its sending half; the other then sends a mebibyte.
fn assert_half_close(mut first: &TcpStream, mut second: &TcpStream, tproxy: &Tproxy) {
    first.write_all(b"last words").unwrap();
    first.shutdown(Shutdown::Write).unwrap();
    let mut heard = String::new();
    second.read_to_string(&mut heard).unwrap_or_else(|error| panic!("{error}\n{}", **tproxy));
    assert_eq!(heard, "last words", "{}", **tproxy);
    thread::scope(|scope| {
        scope.spawn(|| send_noise(second, 5, MIB));
        scope.spawn(|| check_noise(first, 5, MIB));
    });
}

#[test]
fn a_reset_by_either_end_reaches_the_other_as_a_reset() {
    let world = World::new();
    for (source, family) in rows() {
        let tproxy = intercept(&world, source);
        for end in ["client", "server"] {
            let Pair { client, server } = pair(&world, family, &tproxy);
            assert_talk(&client, &server);
            let (first, mut second) = if end == "client" { (client, server) } else { (server, client) };
            reset(first);
            let error = second.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{end} {source} {family:?}\n{}", *tproxy);
        }
    }
}

fn assert_talk(mut client: &TcpStream, mut server: &TcpStream) {
    let mut byte = [0];
    client.write_all(b"c").unwrap();
    server.read_exact(&mut byte).unwrap();
    server.write_all(b"s").unwrap();
    client.read_exact(&mut byte).unwrap();
}

/// A client that waits for this is one that was not refused at once.
const LATER: &str = "--connect-timeout 10m";

/// The client is refused, or reset when it was connected already; it gets no byte.
fn assert_refused(world: &World, to: SocketAddr, tproxy: &Tproxy) {
    let outcome = connect(&world.net.client, to).and_then(|mut stream| stream.read(&mut [0]));
    let kind = outcome.map_err(|error| error.kind());
    let refused = [Err(ErrorKind::ConnectionRefused), Err(ErrorKind::ConnectionReset)];
    assert!(refused.contains(&kind), "{to}: {kind:?}\n{}", **tproxy);
    // The log names the client's destination with the reason.
    tproxy.wait_line(&[&to.to_string()], PATIENCE).unwrap();
}

#[test]
fn an_upstream_that_refuses_refuses_the_client() {
    let world = World::new();
    for (source, engine) in
        ["host", "client"].iter().flat_map(|source| ENGINES.map(|engine| (source, engine)))
    {
        let args = format!("{FORWARDED} {LATER} --action direct --source {source} --steer {engine}");
        let tproxy = world.tproxy(&args);
        for family in Family::ALL {
            assert_refused(&world, (family.server(), 9).into(), &tproxy);
        }
    }
}

#[test]
fn an_unreachable_upstream_refuses_the_client() {
    let world = World::new();
    world
        .net
        .gateway
        .ip("route add unreachable 198.51.100.0/24\nroute add unreachable 2001:db8::/32")
        .unwrap();
    let tproxy = world.tproxy(&format!("{FORWARDED} {LATER} --action direct --accept at-once"));
    for nowhere in ["198.51.100.1:80", "[2001:db8::1]:80"] {
        assert_refused(&world, nowhere.parse().unwrap(), &tproxy);
    }
}

#[test]
fn a_silent_upstream_ends_the_client_after_the_connect_timeout() {
    let world = World::new();
    let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --accept at-once --connect-timeout 1s"));
    // The server gets these packets, owns no such address and does not forward.
    let silent = ["203.0.113.1", "2001:db8::1"].map(|address| address.parse::<IpAddr>().unwrap());
    each_at_once(silent, |address| {
        let started = Instant::now();
        assert_refused(&world, (address, 80).into(), &tproxy);
        assert!(started.elapsed() >= Duration::from_millis(900), "it did not wait\n{}", *tproxy);
    });
}

#[test]
fn an_idle_connection_ends_after_the_idle_timeout() {
    let world = World::new();
    let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --idle-timeout 1s"));
    let Pair { client, server } = pair(&world, Family::V4, &tproxy);
    assert_talk(&client, &server);
    let started = Instant::now();
    for mut end in [&client, &server] {
        let outcome = end.read(&mut [0]).map_err(|error| error.kind());
        assert!([Ok(0), Err(ErrorKind::ConnectionReset)].contains(&outcome), "{outcome:?}\n{}", *tproxy);
    }
    assert!(started.elapsed() >= Duration::from_millis(900), "{}", *tproxy);
}

#[test]
fn urgent_data_does_not_upset_the_stream() {
    let world = World::new();
    let tproxy = intercept(&world, "host");
    let Pair { mut client, mut server } = pair(&world, Family::V4, &tproxy);
    client.write_all(b"before ").unwrap();
    socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
    client.write_all(b" after").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut heard = String::new();
    server.read_to_string(&mut heard).unwrap();
    // The urgent byte itself may be left out or put in line; the bytes around it may not change.
    assert!(["before  after", "before ! after"].contains(&heard.as_str()), "{heard:?}\n{}", *tproxy);
}

#[test]
fn each_connection_is_logged_at_its_start_and_at_its_end() {
    let world = World::new();
    let tproxy = intercept(&world, "client");
    let Pair { mut client, mut server } = pair(&world, Family::V4, &tproxy);
    let address = client.local_addr().unwrap().to_string();
    let destination = client.peer_addr().unwrap().to_string();
    let seen = server.peer_addr().unwrap().to_string();
    tproxy
        .wait_line(&[&address, &destination, "direct", &seen], PATIENCE)
        .unwrap_or_else(|error| panic!("no line with rule, action and upstream source: {error}"));
    let position = tproxy.position();
    client.write_all(&[b'x'; 12_345]).unwrap();
    server.read_exact(&mut [0; 12_345]).unwrap();
    server.write_all(&[b'x'; 54_321]).unwrap();
    client.read_exact(&mut [0; 54_321]).unwrap();
    drop((client, server));
    tproxy
        .wait_line_from(position, &[&address, "12345", "54321"], PATIENCE)
        .unwrap_or_else(|error| panic!("no line with the bytes each way: {error}"));
}

#[test]
fn the_json_log_is_json() {
    let world = World::new();
    let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --log-format json"));
    world.curl(Family::V4.server(), 80);
    let line = tproxy.wait_line(&["10.1.0.2:", "10.2.0.2:80"], PATIENCE).unwrap();
    assert!(line.contains("10.1.0.2:"));
    for line in tproxy.lines() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(&line);
        assert!(parsed.is_ok_and(|value| value.is_object()), "{line}");
    }
}

#[test]
fn thousands_of_short_connections_all_come_through() {
    let world = World::new();
    let tproxy = intercept(&world, "client");
    each_at_once(Family::ALL, |family| {
        serve(&world.net.server, (family.server(), 7), echo);
        for number in 0..1_000 {
            let stream = connect(&world.net.client, (family.server(), 7)).unwrap_or_else(|error| {
                panic!("connection {number}: {error}\n{}", tproxy.lines().join("\n"))
            });
            assert_echo(&stream, "short", &number);
        }
        // The last one too was relayed.
        let client = family.client().to_string();
        let taken = tproxy.lines().iter().filter(|line| line.contains(&client)).count();
        assert!(taken >= 1_000, "only {taken} lines for {family:?}");
    });
    assert_eq!(retransmitted(&world.net.client), 0);
}

#[test]
fn a_worker_stays_on_its_own_cpus_as_long_as_it_has_many_connections() {
    let world = World::new();
    let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --workers 2"));
    let before = cpus_of_workers(&tproxy);
    assert_eq!(before.len(), 2, "{}", *tproxy);
    let listener = listen(&world.net.server, (Family::V4.server(), 0));
    // A worker may be given 16 more than the other, and stays with as many.
    let pairs: Vec<_> = (0..64)
        .map(|_| {
            let client = connect(&world.net.client, listener.local_addr().unwrap()).unwrap();
            (client, accept(&listener))
        })
        .collect();
    let with_many = cpus_of_workers(&tproxy);
    // Of two workers each has every other CPU; where there is one CPU, there is nothing to choose.
    let one_cpu = before.iter().all(|cpus| cpus.trim().parse::<usize>().is_ok());
    assert!(one_cpu || with_many[0] != with_many[1] && !with_many.contains(&before[0]), "{with_many:?}");
    drop(pairs);
    let deadline = Instant::now() + PATIENCE;
    while cpus_of_workers(&tproxy) != before {
        assert!(Instant::now() < deadline, "{:?}", cpus_of_workers(&tproxy));
        thread::yield_now();
    }
}

/// What the threads of the workers may run on, in the order of the workers (proc_pid_status(5)).
fn cpus_of_workers(tproxy: &Tproxy) -> Vec<String> {
    let mut workers: Vec<_> = fs::read_dir(format!("/proc/{}/task", tproxy.pid()))
        .unwrap()
        .filter_map(|task| {
            let status = fs::read_to_string(task.ok()?.path().join("status")).ok()?;
            let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            let name = field("Name:\t").filter(|name| name.starts_with("tproxy-w"))?;
            Some((name, field("Cpus_allowed_list:\t")?))
        })
        .collect();
    workers.sort();
    workers.into_iter().map(|(_, cpus)| cpus).collect()
}
