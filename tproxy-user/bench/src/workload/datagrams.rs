//! Datagrams per second, from clients that keep a few bursts on their way, as QUIC does, and go on when the server says
//! that one has arrived. An open loop would measure whom the scheduler starves: client, proxy and server share the CPUs.

use std::{
    io::{self, IoSliceMut},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::Instant,
};

use anyhow::Context as _;
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use socket2::{Domain, Socket, Type};

use super::{Done, Sample};
use crate::{
    cpu::CpuTime,
    lane::{self, Lane},
    pace::Pace,
    steering::ECHO,
};

/// Client sockets.
const FLOWS: usize = 8;
/// Datagrams of a burst, of which the server tells that the last one has arrived.
const BURST: u64 = 32;
/// Bursts of a flow that are on their way: what the receive buffer of a socket holds that nobody has made larger
/// (`net.core.rmem_default`), each datagram by itself.
const WINDOW: u64 = 2;
/// Bytes of the receive buffers of the server, which has one for all flows.
const SERVER_BUFFER: usize = 16 << 20;
/// When nothing at all has arrived for this long, all that was on its way is lost.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// How a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    /// A burst by one system call.
    Together,
    /// Each datagram by its own.
    Singly,
}

pub(super) fn run(lane: &Lane, pace: Pace, size: usize, sending: Sending) -> anyhow::Result<Sample> {
    let threads = lane::cpus();
    let server = lane.net.server.enter(|| (0..threads).map(|_| sink()).collect::<io::Result<Vec<_>>>())?;
    let flows = |_| lane.net.client.enter(|| LoadSocket::open(size, sending));
    let (arrived, stop, stop_server) = (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let sinks: Vec<_> =
            server.iter().map(|sink| scope.spawn(|| drain(sink, &arrived, &stop_server))).collect();
        let mut clients = Vec::new();
        for _ in 0..threads {
            let flows = (0..FLOWS / threads.min(FLOWS)).map(flows).collect::<io::Result<Vec<_>>>()?;
            clients.push(scope.spawn(|| send(flows, &stop)));
        }
        // Measuring is letting time pass.
        thread::sleep(pace.warm_up);
        let begin = (Instant::now(), CpuTime::now()?, arrived.load(Relaxed));
        thread::sleep(pace.span);
        let units = arrived.load(Relaxed) - begin.2;
        let done = Done { units: units as f64, span: begin.0.elapsed(), cpu: CpuTime::now()? - begin.1 };
        stop.store(true, Relaxed);
        let join = |thread: thread::ScopedJoinHandle<'_, io::Result<()>>| {
            thread.join().unwrap_or_else(|reason| std::panic::resume_unwind(reason))
        };
        clients.into_iter().try_for_each(join).context("a client")?;
        stop_server.store(true, Relaxed);
        sinks.into_iter().try_for_each(join).context("the server")?;
        anyhow::ensure!(units > 0, "no datagram arrived");
        Ok(done.sample())
    })
}

/// A socket of the server, one for each thread; the kernel spreads flows over them.
fn sink() -> io::Result<BatchSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_reuse_port(true)?;
    set_socket_recv_buffer_size_force(&socket, SERVER_BUFFER)?;
    // On no address, it would answer from another than that it was asked at.
    socket.bind(&Lane::target(ECHO).into())?;
    BatchSocket::new(socket)
}

/// A socket with what the kernel can do for it.
struct BatchSocket {
    socket: Socket,
    state: UdpSocketState,
}

impl BatchSocket {
    fn new(socket: Socket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self { socket, state })
    }

    /// Waits for something to read, but not for ever.
    fn wait(&self) -> io::Result<bool> {
        Ok(poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&PATIENCE))? > 0)
    }
}

/// Counts what arrives and tells who sent it, a burst at a time.
fn drain(sink: &BatchSocket, arrived: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    let mut memory = vec![0; BATCH_SIZE << 16];
    let mut messages = [RecvMeta::default(); BATCH_SIZE];
    while !stop.load(Relaxed) {
        if !sink.wait()? {
            continue;
        }
        let mut chunks = memory.chunks_exact_mut(1 << 16);
        let mut buffers: [_; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let received = match sink.state.recv((&sink.socket).into(), &mut buffers, &mut messages) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        for (message, memory) in messages[..received].iter().zip(memory.chunks_exact(1 << 16)) {
            let number = message.len.div_ceil(message.stride.max(1)) as u64;
            arrived.fetch_add(number, Relaxed);
            let Some(first) = memory.first_chunk() else { continue };
            let next = u64::from_ne_bytes(*first) + number;
            if next / BURST > (next - number) / BURST {
                sink.socket.send_to(&next.to_ne_bytes(), &message.addr.into())?;
            }
        }
    }
    Ok(())
}

/// A socket of the client.
struct LoadSocket {
    endpoint: BatchSocket,
    /// A burst.
    contents: Vec<u8>,
    size: usize,
    sending: Sending,
    sent: u64,
    arrived: u64,
}

impl LoadSocket {
    fn open(size: usize, sending: Sending) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.connect(&Lane::target(ECHO).into())?;
        let contents = vec![0; size * BURST as usize];
        Ok(Self { endpoint: BatchSocket::new(socket)?, contents, size, sending, sent: 0, arrived: 0 })
    }

    /// Sends as much as may be on its way.
    fn send(&mut self) -> io::Result<()> {
        while self.sent < self.arrived + WINDOW * BURST {
            for (number, datagram) in (self.sent..).zip(self.contents.chunks_exact_mut(self.size)) {
                datagram[..8].copy_from_slice(&number.to_ne_bytes());
            }
            let BatchSocket { socket, state } = &self.endpoint;
            match self.sending {
                Sending::Together => state.try_send(
                    socket.into(),
                    &Transmit {
                        destination: Lane::target(ECHO),
                        ecn: None,
                        contents: &self.contents,
                        segment_size: Some(self.size),
                        src_ip: None,
                    },
                )?,
                Sending::Singly => {
                    self.contents.chunks_exact(self.size).try_for_each(|one| socket.send(one).map(drop))?;
                }
            }
            self.sent += BURST;
        }
        Ok(())
    }

    /// Looks at what the server says has arrived.
    fn receive(&mut self) -> io::Result<()> {
        let mut message = [0; 8];
        loop {
            match io::Read::read(&mut &self.endpoint.socket, &mut message) {
                Ok(_) => self.arrived = self.arrived.max(u64::from_ne_bytes(message)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn send(mut flows: Vec<LoadSocket>, stop: &AtomicBool) -> io::Result<()> {
    flows.iter_mut().try_for_each(LoadSocket::send)?;
    while !stop.load(Relaxed) {
        let mut sockets: Vec<_> =
            flows.iter().map(|flow| PollFd::new(&flow.endpoint.socket, PollFlags::IN)).collect();
        let ready = poll(&mut sockets, Some(&PATIENCE))?;
        let is_readable: Vec<_> = sockets.iter().map(|socket| !socket.revents().is_empty()).collect();
        for (flow, is_readable) in flows.iter_mut().zip(is_readable) {
            if is_readable {
                flow.receive()?;
            } else if ready == 0 {
                flow.arrived = flow.sent;
            } else {
                continue;
            }
            flow.send()?;
        }
    }
    Ok(())
}
