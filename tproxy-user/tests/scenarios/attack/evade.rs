//! Nothing that a rule selects reaches the server, whatever it looks like on the wire.
#![expect(clippy::print_stdout, reason = "how often it was tried is what `cargo xtask attack` shows")]

use std::collections::BTreeSet;

use rustix::process::Signal;

use super::{
    packets::{Ends, Flag, SYN, TCP, UDP, finish},
    server::{Received, Server},
    times,
    wire::{PRIORITY_TAG, Wire},
};
use crate::support::*;

/// Which all rules here are about: TCP, and UDP.
const PORTS: [u16; 2] = [80, 53];

/// A flow that begins in a way of its own.
struct Variant {
    name: String,
    sport: u16,
    tags: Vec<[u8; 4]>,
    packets: Vec<Vec<u8>>,
}

/// Everything that got past older versions, or past others, and what is like it.
fn variants() -> Vec<Variant> {
    let mut variants: Vec<Variant> = Vec::new();
    for family in Family::ALL {
        let ends = Ends::of(family);
        let mut add = |name: &str, tags: &[[u8; 4]], build: &dyn Fn(u16) -> Vec<Vec<u8>>| {
            let sport = 20_000 + variants.len() as u16;
            let name = format!("{family:?} {name}");
            variants.push(Variant { name, sport, tags: tags.to_vec(), packets: build(sport) });
        };
        let syn = |sport| ends.packet(TCP, &ends.syn(sport));
        let query = |sport| ends.packet(UDP, &ends.datagram(sport, PORTS[1], b"query"));
        add("SYN", &[], &|sport| vec![syn(sport)]);
        add("datagram", &[], &|sport| vec![query(sport)]);
        // The kernel takes a tag of VLAN 0 for none.
        let tags: [&[[u8; 4]]; 3] =
            [&[PRIORITY_TAG], &[PRIORITY_TAG; 2], &[[0x88, 0xa8, 0, 0], PRIORITY_TAG]];
        for tags in tags {
            add(&format!("SYN behind {tags:02x?}"), tags, &|sport| vec![syn(sport)]);
            add(&format!("datagram behind {tags:02x?}"), tags, &|sport| vec![query(sport)]);
        }
        const OPTIONS: &[u8] = &[2, 4, 5, 120, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];
        // In IPv6 the kernel has no first fragment without the whole header (RFC 7112).
        let parted: &[usize] = if family == Family::V4 { &[8, 16] } else { &[] };
        for &cut in parted {
            let pieces = |sport| ends.fragments(TCP, sport, &ends.syn(sport), &[cut]);
            add(&format!("SYN cut at {cut}"), &[], &pieces);
            add(&format!("SYN cut at {cut}, its end first"), &[], &|sport| {
                pieces(sport).into_iter().rev().collect()
            });
        }
        for cut in [24, 32, 40] {
            add(&format!("SYN with options cut at {cut}"), &[], &|sport| {
                ends.fragments(TCP, sport, &ends.segment(sport, &[SYN], OPTIONS, b"sixteen bytes..."), &[cut])
            });
        }
        for cuts in [&[1232, 2464][..], &[8, 1232, 2464], &[8, 16, 1232, 2464]] {
            let long =
                |sport| ends.fragments(UDP, sport, &ends.datagram(sport, PORTS[1], &[b'q'; 3000]), cuts);
            add(&format!("datagram cut at {cuts:?}"), &[], &long);
            add(&format!("datagram cut at {cuts:?}, backwards"), &[], &|sport| {
                long(sport).into_iter().rev().collect()
            });
        }
        let others: [(&str, &[Flag]); 3] = [
            ("ECE and CWR", &[SYN, |header| header.ece = true, |header| header.cwr = true]),
            ("PSH and URG", &[SYN, |header| header.psh = true, |header| header.urg = true]),
            ("FIN", &[SYN, |header| header.fin = true]),
        ];
        for (name, flags) in others {
            add(&format!("SYN with {name}"), &[], &|sport| {
                vec![ends.packet(TCP, &ends.segment(sport, flags, &[], &[]))]
            });
        }
        add("SYN with data", &[], &|sport| {
            vec![ends.packet(TCP, &ends.segment(sport, &[SYN], &[], b"early"))]
        });
        // Who answers first may have passed, but did not.
        let forged = |sport| {
            let turned = ends.turned();
            turned.packet(UDP, &turned.datagram(PORTS[1], sport, b"forged"))
        };
        add("datagram after a forged answer", &[], &|sport| vec![forged(sport), query(sport)]);
        add("datagram after many forged answers", &[], &|sport| {
            [vec![forged(sport); 8], vec![query(sport)]].concat()
        });
        match ends {
            Ends::V4(..) => {
                let options: [(&str, &[u8]); 2] =
                    [("that say nothing", &[1; 40]), ("one word long", &[1; 4])];
                for (name, options) in options {
                    add(&format!("SYN behind options {name}"), &[], &|sport| {
                        vec![ends.with(TCP, &ends.syn(sport), 0, options)]
                    });
                    add(&format!("datagram behind options {name}"), &[], &|sport| {
                        vec![ends.with(UDP, &ends.datagram(sport, PORTS[1], b"query"), 0, options)]
                    });
                }
                add("SYN with the reserved flag", &[], &|sport| {
                    vec![ends.with(TCP, &ends.syn(sport), 0x8000, &[])]
                });
                add("SYN that must not be fragmented", &[], &|sport| {
                    vec![ends.with(TCP, &ends.syn(sport), 0x4000, &[])]
                });
            }
            Ends::V6(..) => {
                for headers in [1, 2, 6, 7, 8, 9, 20] {
                    add(&format!("SYN behind {headers} headers"), &[], &|sport| {
                        vec![ends.behind(headers, TCP, &ends.syn(sport))]
                    });
                    add(&format!("datagram behind {headers} headers"), &[], &|sport| {
                        vec![ends.behind(headers, UDP, &ends.datagram(sport, PORTS[1], b"query"))]
                    });
                }
                add("SYN in one fragment", &[], &|sport| ends.fragments(TCP, sport, &ends.syn(sport), &[]));
                add("datagram in one fragment", &[], &|sport| {
                    ends.fragments(UDP, sport, &ends.datagram(sport, PORTS[1], b"query"), &[])
                });
                // Of a jumbogram, which receivers do not ask it for.
                add("datagram without a length", &[], &|sport| {
                    let mut datagram = ends.datagram(sport, PORTS[1], b"query");
                    datagram[4..6].fill(0);
                    vec![ends.packet(UDP, &datagram)]
                });
            }
        }
    }
    variants
}

fn is_selected(received: &Received) -> bool {
    let [tcp, udp] = PORTS;
    received.dport == if received.protocol == socket2::Protocol::TCP { tcp } else { udp }
}

#[test]
fn no_variant_of_a_first_packet_gets_by() {
    let net = Topology::three().unwrap();
    let (wire, server, variants) = (Wire::of(&net), Server::listen(&net), variants());
    let names = |received: &[Received]| -> BTreeSet<&str> {
        let by_port = |one: &Received| variants.iter().find(|variant| variant.sport == one.sport);
        let selected = received.iter().filter(|one| is_selected(one));
        selected.filter_map(by_port).map(|variant| variant.name.as_str()).collect()
    };
    let send = || {
        for variant in &variants {
            variant.packets.iter().for_each(|packet| wire.send(&variant.tags, packet));
        }
        server.receive(&net, &wire)
    };
    let all: BTreeSet<_> = variants.iter().map(|variant| variant.name.as_str()).collect();
    let without = names(&send());
    assert!(
        all == without,
        "not even without a rule gets there: {:?}",
        all.difference(&without).collect::<Vec<_>>()
    );
    for action in ["drop", "reject", "respond=no"] {
        let mut tproxy = tproxy_in(
            &net.gateway,
            &format!("{FORWARDED} --port 80,53 --action {action} --drain-timeout 1s"),
        );
        assert_eq!(names(&send()), BTreeSet::new(), "{action}\n{}", *tproxy);
        println!("{action}: {} variants, none got by", variants.len());
        tproxy.signal(Signal::TERM);
        tproxy.wait(PATIENCE).unwrap();
    }
}

#[test]
fn nothing_that_is_made_up_at_random_gets_by() {
    /// Between two looks at what has arrived.
    const AT_ONCE: u32 = 1_000;
    let net = Topology::three().unwrap();
    let (wire, server, variants) = (Wire::of(&net), Server::listen(&net), variants());
    let tproxy = tproxy_in(&net.gateway, &format!("{FORWARDED} --port 80,53 --action drop"));
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut sent, mut passed) = (0_u64, 0);
    for _ in 0..times(20) {
        for _ in 0..AT_ONCE {
            let variant = random.choice(&variants).expect("there are some");
            let tags = if random.u8(..8) == 0 { &[PRIORITY_TAG][..] } else { &variant.tags };
            for packet in &variant.packets {
                wire.send(tags, &changed(packet, &mut random));
                sent += 1;
            }
        }
        let received = server.receive(&net, &wire);
        let got_by: Vec<_> = received.iter().filter(|one| is_selected(one)).collect();
        assert!(got_by.is_empty(), "of seed {seed}, after {sent} packets: {got_by:02x?}\n{}", *tproxy);
        passed += received.len();
    }
    // Changed to other ports, they are nobody's business.
    assert!(passed > 0, "{}", *tproxy);
    println!("{sent} packets, of which {passed} passed to other ports and none to those of the rule");
}

/// In a few of its bytes, its length, or not at all; with a sum that routers accept.
fn changed(packet: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut packet = packet.to_vec();
    for _ in 0..random.u8(..4) {
        let at = random.usize(..packet.len().min(96));
        packet[at] = match random.u8(..4) {
            0 => random.u8(..),
            1 => packet[at] ^ 1 << random.u8(..8),
            2 => 0,
            _ => 0xff,
        };
    }
    if random.u8(..8) == 0 {
        packet.truncate(random.usize(20..=packet.len()));
    }
    if packet[0] >> 4 == 4 {
        // Its own account of its length, mostly as it is.
        if random.u8(..4) != 0 {
            let length = (packet.len() as u16).to_be_bytes();
            packet[2..4].copy_from_slice(&length);
        }
        if usize::from(packet[0] & 0x0f) * 4 <= packet.len() {
            finish(&mut packet);
        }
    }
    packet
}
