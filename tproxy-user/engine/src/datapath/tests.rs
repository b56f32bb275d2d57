//! The loaded programs against the reference: the same parser and policy in user space, on generated packets.

mod forgetting;
mod frames;
mod reference;

use std::{cell::RefCell, collections::HashMap, net::IpAddr, sync::Arc, time::Instant};

use aya::maps::HashMap as BpfHashMap;
use tproxy_netns::{Namespace, PATIENCE};

use frames::{ACK, Content, ETHERNET, Frame, Ip, Part, Payload, RST, Tcp, datagram, frame, syn};
use ipnet::IpNet;
use proptest::{
    prelude::*,
    test_runner::{TestCaseError, TestCaseResult, TestRunner},
};
use reference::{Expected, Reference};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use tproxy_common::{
    abi::{Decision, FragmentKey, Memory, Origin},
    addr::Addr,
    flow::{Protocol, Tuple},
    rule::RuleIndex,
};

use super::*;
use crate::{
    config::{Action, Rule, Scope},
    host::{
        Direction,
        links::{self, Layer, Link},
    },
    policy::{
        Compiled, Extent, HostLookups,
        generate::{INTERFACES, address, any_rule, interfaces, rule},
    },
    socket::{black_hole, listener},
};

/// As MACs, the beginning of an IPv4 and of an IPv6 header: a test run takes the first bytes of every packet for its
/// Ethernet header, and what is not addressed to the interface is not for us.
const MACS: [(&str, [u8; 6]); 2] = [("four", [0x46, 0, 0, 44, 0, 0]), ("six", [0x60, 0, 0, 0, 0, 40])];

/// A loaded datapath in a namespace with `lo` and two interfaces.
struct Rig {
    datapath: Datapath,
    lo: Link,
    links: Vec<(Link, [u8; 6])>,
    sockets: Vec<socket2::Socket>,
}

impl Rig {
    fn run(steer: Steer, test: impl FnOnce(Self) + Send) {
        Self::with_workers(1, steer, test);
    }

    fn with_workers(workers: u32, steer: Steer, test: impl FnOnce(Self) + Send) {
        let namespace = Namespace::new("prog").unwrap();
        let mut indices = INTERFACES;
        let [four, six] = MACS.map(|(name, [a, b, c, d, e, f])| {
            let index = indices.next().unwrap();
            format!("name {name} index {index} address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
        });
        namespace.ip(&format!("link add {four} type veth peer {six}")).unwrap();
        namespace.enter(|| test(Self::new(workers, steer)));
    }

    fn new(workers: u32, steer: Steer) -> Self {
        let mark = Mark::DEFAULT;
        let mut datapath = Datapath::load(Settings {
            mark,
            steer,
            attachment: Attachment::of_this_kernel(),
            workers,
            memory: Duration::from_secs(120),
            sizes: Sizes::LEAST,
            verbose: false,
        })
        .unwrap();
        datapath.load_all().unwrap();
        let mut sockets = vec![];
        for family in Family::BOTH {
            for worker in 0..workers {
                let (tcp, udp) = (listener(family, mark).unwrap(), unconnected(family, mark));
                datapath.set_listener(worker, Protocol::Tcp, family, &tcp).unwrap();
                datapath.set_listener(worker, Protocol::Udp, family, &udp).unwrap();
                sockets.extend([tcp, udp]);
            }
            let (tcp, udp) = (black_hole(family, mark).unwrap(), unconnected(family, mark));
            datapath.set_black_hole(Protocol::Tcp, family, &tcp).unwrap();
            datapath.set_black_hole(Protocol::Udp, family, &udp).unwrap();
            sockets.extend([tcp, udp]);
        }
        datapath.attach_lookup().unwrap();
        let all = links::snapshot().unwrap();
        let named = |name| all.iter().find(|link| link.name == name).unwrap().clone();
        let links = MACS.map(|(name, mac)| (named(name), mac)).into();
        Self { datapath, lo: named("lo"), links, sockets }
    }

    /// Installs rules for an otherwise fresh datapath.
    fn install(&mut self, compiled: &Arc<Compiled>, hosts: &[IpAddr], deciding: bool) {
        self.datapath.install(compiled, 0, Extent::default()).unwrap();
        self.datapath.set_host_addresses(hosts.iter().map(|addr| IpNet::from(*addr))).unwrap();
        if deciding { self.datapath.start_deciding() } else { self.datapath.stop_deciding() }.unwrap();
        empty(&mut self.datapath.decisions(Arc::default(), Arc::default()).unwrap().map);
        for name in [map::MEMORY, map::HOST_FLOWS] {
            empty(&mut self.datapath.share::<Tuple, Memory>(name).unwrap());
        }
        empty(&mut self.datapath.share::<FragmentKey, u32>(map::FRAGMENTS).unwrap());
    }

    fn decisions(&self) -> HashMap<Tuple, Decision> {
        let map = self.datapath.decisions(Arc::default(), Arc::default()).unwrap().map;
        let timeless = map.iter().map(|entry| {
            entry
                .map(|(tuple, decision)| (tuple, Decision { seen: 0, origin: Origin::default(), ..decision }))
        });
        timeless.collect::<Result<_, _>>().unwrap()
    }

    fn memory(&self) -> HashMap<Tuple, (RuleIndex, u32, u32)> {
        let mut all = HashMap::new();
        for name in [map::MEMORY, map::HOST_FLOWS] {
            for entry in self.datapath.share::<Tuple, Memory>(name).unwrap().iter() {
                let (tuple, memory) = entry.unwrap();
                all.insert(tuple, (memory.rule, memory.worker, memory.origin.ifindex));
            }
        }
        all
    }
}

fn unconnected(family: Family, mark: Mark) -> socket2::Socket {
    let socket = socket2::Socket::new(family.into(), socket2::Type::DGRAM, None).unwrap();
    socket.set_mark(mark.own()).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&std::net::SocketAddr::new(family.loopback(), 0).into()).unwrap();
    socket
}

fn empty<K: Pod, V: Pod>(map: &mut BpfHashMap<MapData, K, V>) {
    let old: Vec<_> = map.keys().collect::<Result<_, _>>().unwrap();
    old.iter().for_each(|key| map.remove(key).unwrap());
}

/// Where a packet is seen.
#[derive(Debug, Clone, Copy)]
enum Device {
    Lo,
    /// One of [`Rig::links`].
    Ethernet(usize),
    /// The same, taken for one without link-layer header.
    Ip(usize),
}

#[derive(Debug, Clone)]
struct Sighting {
    device: Device,
    hook: Direction,
    mark: u32,
    ingress_ifindex: u32,
    frame: Frame,
}

#[derive(Debug, Clone)]
struct Case {
    rules: Vec<Rule>,
    hosts: Vec<IpAddr>,
    deciding: bool,
    sightings: Vec<Sighting>,
}

fn device() -> impl Strategy<Value = Device> {
    prop_oneof![
        1 => Just(Device::Lo),
        4 => (0_usize..2).prop_map(Device::Ethernet),
        2 => (0_usize..2).prop_map(Device::Ip),
    ]
}

fn sighting() -> impl Strategy<Value = Sighting> {
    let hook = prop_oneof![2 => Just(Direction::Ingress), 1 => Just(Direction::Egress)];
    let mark = Mark::DEFAULT;
    let mark = prop_oneof![6 => Just(0), 1 => prop::sample::select(vec![7, mark.steer() | 7, mark.own(), mark.own() | 7])];
    let ingress_ifindex = prop_oneof![4 => Just(0), 1 => INTERFACES];
    (device(), hook, mark, ingress_ifindex, frame()).prop_map(
        |(device, hook, mark, ingress_ifindex, frame)| Sighting {
            device,
            hook,
            mark,
            ingress_ifindex,
            frame,
        },
    )
}

/// What is seen of a flow.
fn sightings() -> impl Strategy<Value = Vec<Sighting>> {
    prop_oneof![2 => of_a_packet().boxed(), 1 => of_datagrams().boxed()]
}

/// A packet, and perhaps the ACK that follows a SYN.
fn of_a_packet() -> impl Strategy<Value = Vec<Sighting>> {
    (sighting(), any::<bool>()).prop_map(|(first, answered)| {
        let mut ack = first.clone();
        match &mut ack.frame.content {
            Content::Ip(Ip { payload: Payload::Tcp(tcp), .. }) if answered => tcp.flags = ACK,
            _ => return vec![first],
        }
        vec![first, ack]
    })
}

/// Datagrams of one flow and their answers, whole and in parts, in any order.
fn of_datagrams() -> impl Strategy<Value = Vec<Sighting>> {
    let part = prop::sample::select(vec![Part::Whole, Part::First, Part::Middle, Part::Last, Part::Answer]);
    (sighting(), datagram(), prop::collection::vec(part, 1..6)).prop_map(|(seen, datagram, parts)| {
        let sighting = |part| {
            let content = Content::Ip(datagram.clone().part(part));
            let frame = Frame { ether_type: None, content, lies: vec![], cut: None, ..seen.frame.clone() };
            Sighting { frame, ..seen.clone() }
        };
        parts.into_iter().map(sighting).collect()
    })
}

fn case() -> impl Strategy<Value = Case> {
    (
        prop::collection::vec(any_rule(), 0..24),
        prop::collection::vec(address(), 0..4),
        prop::bool::weighted(0.95),
        prop::collection::vec(sightings(), 1..30).prop_map(|sightings| sightings.concat()),
    )
        .prop_map(|(rules, hosts, deciding, sightings)| Case { rules, hosts, deciding, sightings })
}

impl Rig {
    /// What `sighting` is on this rig: the interface and the packet's bytes.
    fn spell_out(&self, sighting: &Sighting) -> (Link, Vec<u8>) {
        let frame = &sighting.frame;
        match sighting.device {
            Device::Lo => (self.lo.clone(), frame.bytes([0; 6])),
            Device::Ethernet(which) => {
                let (link, mac) = &self.links[which];
                (link.clone(), frame.bytes(*mac))
            }
            Device::Ip(which) => {
                let (link, mac) = &self.links[which];
                let mut packet = frame.packet();
                packet.resize(packet.len().max(ETHERNET), 0);
                packet[..mac.len()].copy_from_slice(mac);
                (Link { layer: Layer::Ip, ..link.clone() }, packet)
            }
        }
    }

    fn counted_since(&self, before: &[(Reason, u64)]) -> Vec<Reason> {
        let after = self.datapath.counters().unwrap();
        let times = |((reason, after), (_, before)): (&(Reason, u64), &(Reason, u64))| {
            std::iter::repeat_n(*reason, (after - before) as usize)
        };
        after.iter().zip(before).flat_map(times).collect()
    }

    fn check(&mut self, case: &Case) -> TestCaseResult {
        let numbered = (0..).zip(&case.rules);
        let rules: Vec<_> = numbered
            .map(|(index, rule): (u32, _)| Rule { name: index.to_string().into(), ..rule.clone() })
            .collect();
        let compiled = Arc::new(Compiled::new(&rules, interfaces, &[]));
        let hits_before = self.datapath.rule_hits().unwrap();
        self.install(&compiled, &case.hosts, case.deciding);
        let is_host_address = |addr: &Addr| case.hosts.contains(&IpAddr::from(*addr));
        let rules = HostLookups {
            compiled: &compiled,
            is_host_address: &is_host_address,
            is_publishing: false,
            sender_cgroups: &[],
        };
        let settings = self.datapath.settings;
        let mut reference = Reference::new(rules, settings.mark, case.deciding);
        for sighting in &case.sightings {
            let (link, packet) = self.spell_out(sighting);
            let Sighting { hook, mark, ingress_ifindex, ref frame, .. } = *sighting;
            if !can_be_run(&packet) {
                continue;
            }
            let seen = HookPacket { packet: &packet, mark, ingress_ifindex };
            let to_us = frame.to_us || link.layer == Layer::Ip;
            let mut expected = reference.sees(&link, hook, to_us, seen);
            expected.reasons.sort_by_key(|reason| *reason as u32);

            let before = self.datapath.counters().unwrap();
            let ran =
                self.datapath.test_run(&link, hook, seen).map_err(|e| TestCaseError::fail(e.to_string()))?;
            let reasons = self.counted_since(&before);
            let did = Expected { course: ran.course, mark: ran.mark, reasons };
            prop_assert_eq!(&did, &expected, "(program, reference) for {:#?}\n{:02x?}", sighting, packet);
            match ran.course {
                PacketCourse::Passed => prop_assert_eq!(ran.packet, packet),
                PacketCourse::Steered => prop_assert!(ran.packet.ends_with(&packet)),
                PacketCourse::Answered | PacketCourse::Dropped => {}
            }
        }
        prop_assert_eq!(&self.decisions(), &reference.decisions);
        prop_assert_eq!(&self.memory(), &reference.memory);
        for (name, hits) in self.datapath.rule_hits().unwrap() {
            let expected = reference.hits.get(&name.parse().unwrap()).copied().unwrap_or_default();
            prop_assert_eq!(hits - hits_before.get(&name).unwrap_or(&0), expected, "hits of rule {}", name);
        }
        Ok(())
    }
}

/// The kernel takes the first bytes for an Ethernet header, and wants a whole IP header after one that promises it.
fn can_be_run(packet: &[u8]) -> bool {
    let ip_header = match packet[12..ETHERNET] {
        [0x08, 0x00] => 20,
        [0x86, 0xdd] => 40,
        _ => 0,
    };
    packet.len() >= ETHERNET + ip_header
}

/// Runs a property on a rig, which is too dear to be made for each case.
fn check<S: Strategy>(cases: u32, strategy: S, test: impl FnMut(S::Value) -> TestCaseResult) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let test = RefCell::new(test);
    if let Err(failure) = TestRunner::new(config).run(&strategy, |case| test.borrow_mut()(case)) {
        panic!("{failure}");
    }
}

#[test]
fn the_loaded_programs_do_what_the_reference_says() {
    for steer in [Steer::SkLookup, Steer::SkAssign] {
        Rig::run(steer, |mut rig| check(200, case(), |case| rig.check(&case)));
    }
}

/// As on a network device with one queue.
#[test]
fn connections_that_come_in_on_one_cpu_are_shared_out() {
    const WORKERS: u32 = 3;
    Rig::with_workers(WORKERS, Steer::SkLookup, |mut rig| {
        let mut here = CpuSet::new();
        here.set(sched_getcpu());
        sched_setaffinity(None, &here).unwrap();
        rig.install(&Arc::new(Compiled::new(&[rule()], interfaces, &[])), &[], true);
        let (link, mac) = rig.links[0].clone();
        for sport in 1025..1325 {
            let mut syn = Ip::syn("8.0.0.1".parse().unwrap(), "9.0.0.1".parse().unwrap());
            let Payload::Tcp(tcp) = &mut syn.payload else { unreachable!("it is TCP") };
            tcp.sport = sport;
            let syn = Frame::of(syn).bytes(mac);
            rig.datapath
                .test_run(&link, Direction::Ingress, HookPacket { packet: &syn, mark: 0, ingress_ifindex: 0 })
                .unwrap();
        }
        let mut shares = [0; WORKERS as usize];
        rig.decisions().values().for_each(|decision| shares[decision.worker as usize] += 1);
        assert_eq!(shares.iter().sum::<i32>(), 300);
        assert!(shares.iter().all(|share| (80..=120).contains(share)), "{shares:?}");
    });
}

#[test]
fn nothing_is_taken_whose_listener_is_gone() {
    Rig::run(Steer::SkLookup, |mut rig| {
        let everything = Arc::new(Compiled::new(&[rule()], interfaces, &[]));
        rig.install(&everything, &[], true);
        let (link, mac) = rig.links[0].clone();
        let syn = Frame::of(Ip::syn("8.0.0.1".parse().unwrap(), "9.0.0.1".parse().unwrap())).bytes(mac);
        let see = |rig: &Rig| {
            let before = rig.datapath.counters().unwrap();
            let seen = HookPacket { packet: &syn, mark: 0, ingress_ifindex: 0 };
            let ran = rig.datapath.test_run(&link, Direction::Ingress, seen).unwrap();
            (ran.course, rig.counted_since(&before))
        };
        assert_eq!(see(&rig), (PacketCourse::Steered, vec![Reason::RuleSteer]));
        rig.sockets.clear();
        // A process that is being started elsewhere has a copy of them for a moment.
        let begun = Instant::now();
        while see(&rig).0 == PacketCourse::Steered && begun.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        // Decided before, and new: each is told of once.
        assert_eq!(see(&rig), (PacketCourse::Passed, vec![Reason::ListenerGone]));
        rig.install(&everything, &[], true);
        assert_eq!(see(&rig), (PacketCourse::Passed, vec![Reason::ListenerGone]));
    });
}

#[test]
fn a_refused_syn_is_answered_with_a_proper_reset() {
    Rig::run(Steer::SkLookup, |mut rig| {
        let refuse = |scope| Rule::new("r", scope, Action::Reject);
        let rules = [refuse(Scope::Forwarded), refuse(Scope::Outbound)];
        rig.install(&Arc::new(Compiled::new(&rules, interfaces, &[])), &[], true);
        let (ethernet, mac) = rig.links[0].clone();
        let bare = Link { layer: Layer::Ip, ..ethernet.clone() };
        check(300, syn(), |ip| {
            let Some(answer) = answer_to(&ip) else { return Ok(()) };
            let (refused, answer) = (Frame::of(ip), Frame::of(answer));
            for hook in [Direction::Ingress, Direction::Egress] {
                let frame = refused.bytes(mac);
                let seen = HookPacket { packet: &frame, mark: 5, ingress_ifindex: 0 };
                let mut turned = answer.bytes(mac);
                turned[..6].copy_from_slice(&frame[6..12]);
                turned[6..12].copy_from_slice(&frame[..6]);
                let expected = Ran { course: PacketCourse::Answered, mark: 5, packet: turned };
                prop_assert_eq!(rig.datapath.test_run(&ethernet, hook, seen).unwrap(), expected);
            }
            let packet = refused.packet();
            let seen = HookPacket { packet: &packet, mark: 5, ingress_ifindex: 0 };
            let expected = Ran { course: PacketCourse::Answered, mark: 5, packet: answer.packet() };
            prop_assert_eq!(rig.datapath.test_run(&bare, Direction::Egress, seen).unwrap(), expected);
            Ok(())
        });
    });
}

/// The reset that a SYN gets where nobody listens, of the SYN's length; `None` for a SYN that no rule is asked about.
fn answer_to(syn: &Ip) -> Option<Ip> {
    const NO_OPERATION: u8 = 1;
    let bytes = Frame::of(syn.clone()).packet();
    let parsed = tproxy_common::packet::parse(&bytes[..], 0).ok()?;
    let is_special = parsed.tuple.src.is_special() || parsed.tuple.dst.is_special();
    if is_special || parsed.tuple.dst.is_link_local() || parsed.tuple.dport == [0, 0] || parsed.hops <= 1 {
        return None;
    }
    let Payload::Tcp(tcp) = &syn.payload else { unreachable!("generated as TCP") };
    let reset = Tcp {
        sport: tcp.dport,
        dport: tcp.sport,
        sequence: 0,
        acknowledgement: tcp.sequence.wrapping_add(1),
        flags: RST | ACK,
        window: 0,
        options: vec![[NO_OPERATION; 4]; tcp.options.len()],
        data: tcp.data.clone(),
    };
    Some(Ip { src: syn.dst, dst: syn.src, ttl: 64, payload: Payload::Tcp(reset), ..syn.clone() })
}
