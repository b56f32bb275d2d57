//! Whether what is steered arrives, tried: a flow's first packet with the steer mark comes in by each interface, and is to be
//! seen by a listener of ours at an address that is nobody's. The listener answers nothing.
//!
//! Where no instance runs there is no routing rule for such packets either, so one is made for the moment, and journaled like
//! all that is changed. No packet of others has the mark.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::ifaddrs::getifaddrs;
use tproxy::{
    arrivals::Entrance,
    config::{Config, Steer},
    datapath::{Attachment, Datapath, Settings, Sizes},
    family::Family,
    host::{Change, Identity, Journal, Standing, links, on_record, policy},
    instance::Loss,
    socket::{Counting, first_packet},
};

use super::{
    Finding,
    firewall::{self, FirstPacket, Tried},
    loss,
};

pub(super) const CHECK: &str = "input";

/// For a packet to get through this host.
const PATIENCE: Duration = Duration::from_millis(500);

/// Of the client that there is not; any other would do.
const PORT: u16 = 49_151;

/// Addresses that are nobody's (RFC 5737, RFC 3849).
const fn nobody(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(198, 51, 100, 77)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x7470, 0x726f, 0, 0, 0, 0x77)),
    }
}

/// `config` says what will be steered, if there is one.
pub(super) fn examine(identity: &Identity, config: Option<&Config>) -> Vec<Finding> {
    match try_all(identity, firewall::to_be_tried(identity.mark, config)) {
        Ok(findings) => findings,
        Err(error) => vec![Finding::unknown(CHECK, &error)],
    }
}

fn try_all(identity: &Identity, tried: Tried) -> anyhow::Result<Vec<Finding>> {
    let known = on_record()?;
    let runs = known.iter().any(|other| other.standing == Standing::Lives && other.identity == *identity);
    // What others left is theirs to reclaim, or to be taken over.
    let is_left = known.iter().any(|other| other.standing != Standing::Lives)
        || policy::rules()?.iter().any(|rule| rule.selects_by(identity.mark));
    if tried.entrances.is_empty() || (!runs && is_left) {
        return Ok(Vec::new());
    }
    let mut datapath = Datapath::load(Settings {
        mark: identity.mark,
        steer: Steer::default(),
        attachment: Attachment::of_this_kernel(),
        workers: 1,
        memory: Duration::from_secs(1),
        sizes: Sizes::LEAST,
        verbose: false,
    })?;
    let available: Vec<_> = Family::available().collect();
    let indices: BTreeMap<String, u32> =
        links::snapshot()?.into_iter().map(|link| (link.name, link.index)).collect();
    let entrances: Vec<_> =
        tried.entrances.into_iter().filter(|packet| available.contains(&packet.family)).collect();
    let _rules = if runs { None } else { Some(route(identity, &entrances)?) };
    let mut lost = BTreeSet::new();
    let mut arriving = BTreeSet::new();
    for packet in entrances {
        let Some(index) = indices.get(&packet.interface) else { continue };
        let outcome =
            if arrives(&mut datapath, identity, &packet, *index)? { &mut arriving } else { &mut lost };
        outcome.insert(packet);
    }
    let words = |those: &BTreeSet<FirstPacket>| {
        let words: Vec<_> = those.iter().map(ToString::to_string).collect();
        words.join(", ")
    };
    let mut findings = Vec::new();
    if !arriving.is_empty() {
        let but = if lost.is_empty() { String::new() } else { format!(", and not from {}", words(&lost)) };
        findings.push(Finding::ok(CHECK, format!("what is steered arrives from {}{but}", words(&arriving))));
    }
    for packet in lost {
        let is_alike =
            |other: &FirstPacket| other.family == packet.family && other.protocol == packet.protocol;
        // Most hosts trust some interfaces only; which of them are meant, nobody has said.
        if !tried.is_certain && arriving.iter().any(is_alike) {
            continue;
        }
        let found = format!("a packet that is steered from {packet} does not arrive");
        let FirstPacket { interface, family, protocol } = packet;
        let entrance = Entrance { ifindex: indices[&interface], family, protocol };
        let loss = Loss { entrance, interface, flows: 1, reason: None };
        findings.push(Finding::warn(
            CHECK,
            found,
            "flows from there are lost",
            loss::reason(&loss, identity),
        ));
    }
    Ok(findings)
}

/// Has steered packets delivered as an instance does, until it is dropped.
fn route(identity: &Identity, entrances: &[FirstPacket]) -> anyhow::Result<Journal> {
    let mut journal = Journal::begin(*identity)?;
    let families: BTreeSet<_> = entrances.iter().map(|packet| packet.family).collect();
    let ways: BTreeSet<_> = entrances.iter().map(|packet| (packet.family, &packet.interface)).collect();
    let routes = families.into_iter().map(|family| Change::LocalRoute { family });
    let rules = ways.into_iter().map(|(family, iif)| Change::Rule { family, iif: iif.clone() });
    for change in routes.chain(rules) {
        journal.apply(change)?;
    }
    Ok(journal)
}

fn arrives(
    datapath: &mut Datapath,
    identity: &Identity,
    packet: &FirstPacket,
    index: u32,
) -> anyhow::Result<bool> {
    let FirstPacket { ref interface, family, protocol } = *packet;
    let listener = Counting::at(nobody(family), protocol, identity.mark)?;
    let (client, hardware_address) = client(interface, family);
    let frame = first_packet(protocol, SocketAddr::new(client, PORT), listener.address()?, hardware_address);
    datapath.inject(index, &frame)?;
    let begin = Instant::now();
    // The kernel gives no word of it.
    while listener.count()? == 0 {
        if begin.elapsed() > PATIENCE {
            return Ok(false);
        }
        sleep(Duration::from_millis(2));
    }
    Ok(true)
}

/// Somebody who may be behind an interface, for the reverse path filter to believe it; and the interface's own hardware
/// address.
fn client(interface: &str, family: Family) -> (IpAddr, [u8; 6]) {
    let mut hardware_address = [0; 6];
    let mut client = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1)),
    };
    for own in getifaddrs().into_iter().flatten().filter(|own| own.interface_name == interface) {
        let Some(address) = own.address else { continue };
        if let Some(found) = address.as_link_addr().and_then(|link| link.addr()) {
            hardware_address = found;
        }
        let mask = own.netmask;
        let neighbour = match family {
            Family::V4 => address
                .as_sockaddr_in()
                .zip(mask.as_ref().and_then(|mask| mask.as_sockaddr_in()))
                .and_then(|(own, mask)| {
                    let neighbour = neighbour(own.ip().to_bits().into(), mask.ip().to_bits().into(), 32)?;
                    Some(IpAddr::V4(Ipv4Addr::from_bits(neighbour as u32)))
                }),
            Family::V6 => address
                .as_sockaddr_in6()
                .zip(mask.as_ref().and_then(|mask| mask.as_sockaddr_in6()))
                .and_then(|(own, mask)| {
                    let is_routed = !own.ip().is_unicast_link_local();
                    let neighbour = neighbour(own.ip().to_bits(), mask.ip().to_bits(), 128)?;
                    is_routed.then_some(IpAddr::V6(Ipv6Addr::from_bits(neighbour)))
                }),
        };
        client = neighbour.unwrap_or(client);
    }
    (client, hardware_address)
}

/// Another host of a network, that is neither its first address nor its last; none where there is no room for one.
fn neighbour(own: u128, mask: u128, bits: u32) -> Option<u128> {
    let all = if bits == 128 { u128::MAX } else { (1 << bits) - 1 };
    let hosts = all & !mask;
    if hosts < 3 {
        return None;
    }
    let (network, host) = (own & mask, own & hosts);
    let other = if host == 1 { 2 } else { 1 };
    Some(network | other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_is_another_host_of_the_same_network() {
        let v4 = |own: [u8; 4], length: u32| {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            let own = Ipv4Addr::from(own).to_bits();
            neighbour(own.into(), mask.into(), 32).map(|found| Ipv4Addr::from_bits(found as u32).octets())
        };
        assert_eq!(v4([10, 1, 0, 1], 24), Some([10, 1, 0, 2]));
        assert_eq!(v4([10, 1, 0, 2], 24), Some([10, 1, 0, 1]));
        assert_eq!(v4([10, 1, 0, 5], 30), Some([10, 1, 0, 6]));
        assert_eq!(v4([10, 1, 0, 1], 31), None);
        assert_eq!(v4([10, 1, 0, 1], 32), None);
        let own = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1).to_bits();
        assert_eq!(neighbour(own, u128::MAX << 64, 128), Some(own + 1));
    }
}
