//! The workers of an instance, and the sockets that the datapath steers to.

use std::{net::SocketAddr, sync::Arc};

use socket2::Socket;
use tproxy_common::flow::Protocol;

use super::InstanceError;
use crate::{
    arrivals::Arrivals,
    config::Config,
    datapath::Datapath,
    family::Family,
    flows::Flows,
    generation::Generations,
    mark::Mark,
    socket,
    tcp::{self, Syns, TcpCounters},
    udp::{self, UdpCounters},
    way::Routing,
    worker::{Beat, Upkeep, Worker, WorkerSetup},
};

/// Where one worker counts.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) tcp: Arc<TcpCounters>,
    pub(super) udp: Arc<UdpCounters>,
    pub(super) arrivals: Arc<Arrivals>,
}

pub(super) fn start_workers(
    config: &Config,
    generations: &Generations,
    flows: &Flows,
    routing: &Routing,
    datapath: &mut Datapath,
) -> Result<(Vec<Worker>, Vec<Counters>), InstanceError> {
    let mut sockets = Vec::new();
    for worker in 0..config.workers {
        sockets.push((open_listeners(worker, config, datapath)?, open_udp(worker, config, datapath)?));
    }
    let address_of = |socket: &Socket| socket.local_addr().ok().and_then(|addr| addr.as_socket());
    let tcp_bound: Arc<[SocketAddr]> =
        sockets.iter().flat_map(|(tcp, _)| tcp).filter_map(address_of).collect();
    let udp_bound: Arc<[SocketAddr]> =
        sockets.iter().flat_map(|(_, udp)| udp).filter_map(|udp| address_of(udp.listener())).collect();
    let mut workers = Vec::new();
    let mut counters = Vec::new();
    let endpoints = udp::Endpoints::default();
    let syns = Syns::of_workers(config.workers, datapath.syns()?);
    for (index, ((listeners, sockets), syns)) in sockets.into_iter().zip(syns).enumerate() {
        let own = Counters::default();
        let tcp = tcp::Setup {
            listeners,
            bound: Arc::clone(&tcp_bound),
            generations: generations.clone(),
            mark: config.mark,
            routing: routing.clone(),
            decisions: Box::new(datapath.decisions(own.tcp.accept_latency(), Arc::clone(&own.arrivals))?),
            counters: Arc::clone(&own.tcp),
            syns: Some(syns),
            flows: flows.table(index),
        };
        let udp = udp::Setup {
            sockets,
            bound: Arc::clone(&udp_bound),
            generations: generations.clone(),
            workers: config.workers,
            mark: config.mark,
            routing: routing.clone(),
            endpoints: endpoints.clone(),
            memory: Box::new(datapath.memory(index as u32, Arc::clone(&own.arrivals))?),
            counters: Arc::clone(&own.udp),
            flows: flows.table(index),
        };
        let beat: Box<dyn Beat> = Box::new(datapath.beat(index as u32)?);
        let upkeep: Option<Box<dyn Upkeep>> = match index {
            0 => Some(Box::new(datapath.host_flows(config.timeouts.udp_stream)?)),
            _ => None,
        };
        workers.push(
            Worker::spawn(WorkerSetup {
                index,
                workers: config.workers,
                tcp,
                udp: Some(udp),
                beat: Some(beat),
                upkeep,
            })
            .map_err(InstanceError::Worker)?,
        );
        counters.push(own);
    }
    Ok((workers, counters))
}

/// The TCP listeners of a worker, one for each address family.
fn open_listeners(
    worker: usize,
    config: &Config,
    datapath: &mut Datapath,
) -> Result<Vec<Socket>, InstanceError> {
    let open = |family| {
        let listener = socket::listener(family, config.mark)?;
        datapath.set_listener(worker as u32, Protocol::Tcp, family, &listener)?;
        Ok(listener)
    };
    Family::supported().map(open).collect()
}

/// The UDP sockets of a worker, a set for each address family. Rules about UDP may come later.
fn open_udp(
    worker: usize,
    config: &Config,
    datapath: &mut Datapath,
) -> Result<Vec<udp::Sockets>, InstanceError> {
    let open = |family| {
        let sockets = udp::Sockets::open(family, config.mark)?;
        datapath.set_listener(worker as u32, Protocol::Udp, family, sockets.listener())?;
        Ok(sockets)
    };
    Family::supported().map(open).collect()
}

/// Where flows arrive that scope `inbound` drops or rejects, or scope `forwarded` where NAT sends them elsewhere, so that they
/// are counted and told of; of all others the hooks do both by themselves.
pub(super) fn open_black_holes(mark: Mark, datapath: &mut Datapath) -> Result<Vec<Socket>, InstanceError> {
    let mut holes = Vec::new();
    for protocol in Protocol::ALL {
        for family in Family::supported() {
            let hole = match protocol {
                Protocol::Tcp => socket::black_hole(family, mark)?,
                Protocol::Udp => socket::datagram_black_hole(family, mark)?,
            };
            datapath.set_black_hole(protocol, family, &hole)?;
            holes.push(hole);
        }
    }
    Ok(holes)
}
