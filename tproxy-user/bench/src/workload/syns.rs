//! What it costs to decide about a connection: SYNs that the gateway drops where they would reach a socket, so that all
//! else that a connection costs is left out, and each is its flow's first packet.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::Instant,
};

use anyhow::Context as _;
use socket2::{Domain, Protocol, Socket, Type};
use tproxy_netns::{Error, Family, Namespace};

use super::{Done, Sample, program::mean_run};
use crate::{affinity, contender::Contender, cpu::CpuTime, lane::Lane, pace::Pace};

/// The CPU time is that of all of it: sending on one CPU, which then receives on the gateway's side, too.
pub(super) fn run(lane: &Lane, pace: Pace) -> anyhow::Result<Sample> {
    let _dropping = Dropping::new(&lane.net.gateway)?;
    let mut sample = flood(lane, pace)?.sample();
    let datapath = matches!(lane.contender, Contender::Proxy(way, _) if way.is_datapath());
    if let Some(proxy) = lane.proxy.as_ref().filter(|_| datapath) {
        // By itself: these statistics take time.
        sample.0.push(mean_run(proxy.pid(), || flood(lane, pace).map(drop))?);
    }
    Ok(sample)
}

fn flood(lane: &Lane, pace: Pace) -> anyhow::Result<Done> {
    let (sent, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let sender = scope.spawn(|| lane.net.client.enter(|| send(&sent, &stop)));
        // Measuring is letting time pass.
        thread::sleep(pace.warm_up);
        let begin = (Instant::now(), CpuTime::now()?, sent.load(Relaxed));
        thread::sleep(pace.span);
        let units = sent.load(Relaxed) - begin.2;
        let done = Done { units: units as f64, span: begin.0.elapsed(), cpu: CpuTime::now()? - begin.1 };
        stop.store(true, Relaxed);
        sender.join().unwrap_or_else(|reason| std::panic::resume_unwind(reason)).context("a SYN")?;
        Ok(done)
    })
}

fn send(sent: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    /// `IPPROTO_RAW`: the IP header comes with the packet (raw(7)).
    const RAW: i32 = 255;
    affinity::pin_this_thread()?;
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW)))?;
    let (source, target) = (Family::V4.client(), Lane::target(80));
    let (IpAddr::V4(source), SocketAddr::V4(target)) = (source, target) else { unreachable!("of IPv4") };
    let to = SocketAddr::from((*target.ip(), 0)).into();
    // Ports of ours that a socket of the client's may have are of no matter: nothing is ever answered.
    for port in (1024..=u16::MAX).cycle() {
        if stop.load(Relaxed) {
            break;
        }
        socket.send_to(&syn(source, port, target), &to)?;
        sent.fetch_add(1, Relaxed);
    }
    Ok(())
}

/// The kernel fills in the IP checksum; of TCP, there is none, since nobody receives it.
fn syn(source: Ipv4Addr, port: u16, target: SocketAddrV4) -> [u8; 40] {
    let mut packet = [0; 40];
    packet[..10].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6]);
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&target.ip().octets());
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&target.port().to_be_bytes());
    // Twenty bytes of header; SYN; a window.
    packet[32..36].copy_from_slice(&[0x50, 0x02, 0xff, 0xff]);
    packet
}

/// The gateway drops what comes from the client for port 80, after it was steered or routed, for as long as this lives.
struct Dropping<'a>(&'a Namespace);

impl<'a> Dropping<'a> {
    fn new(gateway: &'a Namespace) -> Result<Self, Error> {
        let chain = |hook: &str| {
            format!("chain {hook} {{ type filter hook {hook} priority 0; iifname lan tcp dport 80 drop; }}\n")
        };
        let table = format!("table ip syns {{\n{}{}}}\n", chain("input"), chain("forward"));
        gateway.feed("nft -f -", &table)?;
        Ok(Self(gateway))
    }
}

impl Drop for Dropping<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.run("nft delete table ip syns") {
            eprintln!("the network cannot be used for other workloads: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use tproxy_common::packet::{Kind, parse};

    use super::*;

    #[test]
    fn what_is_sent_asks_for_a_connection() {
        let (source, target) = (Ipv4Addr::new(10, 1, 0, 2), SocketAddrV4::new(Ipv4Addr::new(8, 8, 8, 8), 80));
        let packet = parse(&syn(source, 5555, target)[..], 0).unwrap();
        assert_eq!((packet.kind, packet.tuple.sport, packet.tuple.dport), (Kind::Syn, [0x15, 0xb3], [0, 80]));
    }
}
