//! Hot paths by themselves, so that their instructions can be counted (`cargo xtask bench --hot-paths`): that tells of a
//! regression on any machine, however busy.

use std::{hint::black_box, net::Ipv4Addr};

use clap::{Parser, ValueEnum};
use ipnet::IpNet;
use tproxy::{
    config::{Action, Rule, Selector},
    policy::{Compiled, HostLookups},
    udp,
};
use tproxy_bench::filler;
use tproxy_common::{
    addr::Addr,
    flow::{Flow, Protocol, Tuple},
    packet::{parse, ports_of_segment},
    policy::decide,
    rule::Scope,
};

/// Rules that are asked.
const RULES: usize = 1_000;
const ETHERNET: usize = 14;

/// Goes a path as often as is wanted
#[derive(Parser)]
struct Args {
    path: HotPath,
    /// How often it is gone
    times: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum HotPath {
    /// A packet that may be ours
    Parser,
    /// A packet that cannot be ours
    EarlyExit,
    /// A first packet that matches the last of 1,000 rules
    Policy,
    /// A datagram there and one back, in one of 1,000 sessions
    SessionTable,
}

fn main() -> anyhow::Result<()> {
    let Args { path, times } = Args::parse();
    match path {
        HotPath::Parser => {
            let frame = segment();
            for _ in 0..times {
                let _ = black_box(parse(black_box(&frame[..]), ETHERNET));
            }
        }
        HotPath::EarlyExit => {
            let frame = segment();
            for _ in 0..times {
                let _ = black_box(ports_of_segment(black_box(&frame[..]), ETHERNET));
            }
        }
        HotPath::Policy => policy(times)?,
        HotPath::SessionTable => udp::exercise_sessions(times),
    }
    Ok(())
}

/// An ACK of IPv4 behind an Ethernet header.
fn segment() -> Vec<u8> {
    let mut frame = vec![0; ETHERNET + 40];
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14..24].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6]);
    frame[26..38].copy_from_slice(&[10, 1, 0, 2, 8, 8, 8, 8, 0x30, 0x39, 0, 80]);
    frame[46..48].copy_from_slice(&[0x50, 0x10]);
    frame
}

fn rule_to(to: Vec<IpNet>, port: u16) -> Rule {
    let selector = Selector { to: to.into(), ports: vec![port..=port].into(), ..Scope::Forwarded.into() };
    Rule::new("hot", selector, Action::Direct)
}

fn policy(times: usize) -> anyhow::Result<()> {
    let rule = |index| {
        let (destination, port) = filler(index);
        anyhow::Ok(rule_to(vec![destination.parse()?], port))
    };
    let mut rules = (1..RULES).map(rule).collect::<Result<Vec<_>, _>>()?;
    rules.push(rule_to(vec![], 80));
    let compiled = Compiled::new(&rules, |_| None, &[]);
    let is_host_address = |_: &Addr| false;
    let lookups = HostLookups {
        compiled: &compiled,
        is_host_address: &is_host_address,
        is_publishing: false,
        sender_cgroups: &[],
    };
    let (src, dst) = (Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(8, 8, 8, 8));
    let tuple = Tuple {
        src: Addr::from_v4(src.octets()),
        dst: Addr::from_v4(dst.octets()),
        sport: [0x30, 0x39],
        dport: [0, 80],
    };
    let flow = Flow { protocol: Protocol::Tcp, tuple, ifindex: 2, uid: 0 };
    for _ in 0..times {
        let _ = black_box(decide(Scope::Forwarded, black_box(&flow), &lookups));
    }
    Ok(())
}
