extern crate std;
use core::net::IpAddr;
use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;

fn v4(protocol: u8, options: usize, payload: &[u8]) -> Vec<u8> {
    let total = 20 + options * 4 + payload.len();
    let mut p =
        vec![0x45 + options as u8, 0, (total >> 8) as u8, total as u8, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    p.extend([10, 0, 0, 1, 8, 8, 8, 8]);
    p.extend(vec![1; options * 4]);
    p.extend(payload);
    p
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x60, 0, 0, 0, (payload.len() >> 8) as u8, payload.len() as u8, next, 64];
    p.extend("2001:db8::1".parse::<core::net::Ipv6Addr>().unwrap().octets());
    p.extend("2001:db8::2".parse::<core::net::Ipv6Addr>().unwrap().octets());
    p.extend(payload);
    p
}

fn tcp(flags: u8, words: u8) -> Vec<u8> {
    let mut p = vec![0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, words << 4, flags, 0, 0, 0, 0, 0, 0];
    p.resize(words.max(5) as usize * 4, 1);
    p
}

#[test]
fn a_syn_with_ip_and_tcp_options() {
    let packet = parse(&v4(6, 3, &tcp(tcp_flag::SYN, 10))[..], 0).unwrap();
    assert_eq!(packet.kind, Kind::Syn);
    assert_eq!(packet.l4, 32);
    assert_eq!(IpAddr::from(packet.tuple.dst), "8.8.8.8".parse::<IpAddr>().unwrap());
    assert_eq!((packet.tuple.sport, packet.tuple.dport), ([0x30, 0x39], [0, 80]));
}

#[test]
fn a_signed_syn_wherever_the_signature_is() {
    let signed = |options: &[u8]| {
        let mut segment = tcp(tcp_flag::SYN, 5 + options.len().div_ceil(4) as u8);
        segment[20..20 + options.len()].copy_from_slice(options);
        [(v4(6, 0, &segment), 20), (v6(6, &segment), 40)].map(|(packet, l4)| is_signed(&packet[..], l4))
    };
    let md5 = [[19, 18].as_slice(), &[7; 16]].concat();
    let ao = [[29, 16].as_slice(), &[7; 14]].concat();
    for signature in [md5, ao] {
        let usual = [2, 4, 5, 0xb4, 1, 3, 3, 7, 4, 2];
        let after = |before: &[u8]| [before, &signature].concat();
        for options in [after(&[]), after(&[1, 1]), after(&[1]), after(&usual), after(&[1; 15])] {
            assert_eq!(signed(&options), [true; 2], "{options:?}");
        }
        assert_eq!(signed(&after(&[0])), [false; 2], "what follows the end is none");
    }
    assert_eq!(signed(&[2, 4, 19, 18, 8, 10, 29, 29, 19, 18, 19, 18]), [false; 2], "values of others");
    assert_eq!(signed(&[3, 0, 19, 18]), [false; 2], "no length");
    assert_eq!(signed(&[1, 1, 1, 3]), [false; 2], "a length that is not there");
}

#[test]
fn who_may_fragment_it() {
    let mut packet = v4(17, 0, &[0, 1, 0, 2, 0, 8, 0, 0]);
    assert_eq!(fragmenting(&packet[..], 0, &parse(&packet[..], 0).unwrap()), Fragmenting::Forbidden);
    packet[6] = 0;
    assert_eq!(fragmenting(&packet[..], 0, &parse(&packet[..], 0).unwrap()), Fragmenting::Allowed);
    let packet = v6(17, &[0, 1, 0, 2, 0, 8, 0, 0]);
    assert_eq!(fragmenting(&packet[..], 0, &parse(&packet[..], 0).unwrap()), Fragmenting::Forbidden);
    let packet = v6(44, &[17, 0, 0, 1, 0, 0, 0, 9, 0, 1, 0, 2, 0, 16, 0, 0]);
    assert_eq!(fragmenting(&packet[..], 0, &parse(&packet[..], 0).unwrap()), Fragmenting::Allowed);
}

#[test]
fn kinds_of_segments() {
    for (flags, kind) in [
        (0x02, Kind::Syn),
        (0x12, Kind::Other),
        (0x10, Kind::Ack),
        (0x18, Kind::Ack),
        (0x11, Kind::Ack),
        (0x14, Kind::Other),
        (0xc2, Kind::Syn),
        (0, Kind::Other),
    ] {
        assert_eq!(parse(&v4(6, 0, &tcp(flags, 5))[..], 0).unwrap().kind, kind, "{flags:#x}");
    }
}

#[test]
fn extension_headers_are_skipped() {
    let mut payload = vec![60, 0, 0, 0, 0, 0, 0, 0]; // hop-by-hop, then destination options
    payload.extend([6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    payload.extend(tcp(tcp_flag::SYN, 5));
    let packet = parse(&v6(0, &payload)[..], 0).unwrap();
    assert_eq!((packet.kind, packet.l4), (Kind::Syn, 64));
}

/// `count` headers of eight bytes in front of a SYN.
fn behind_extensions(count: usize) -> Result<Packet, Reason> {
    let mut payload: Vec<u8> =
        (1..=count).flat_map(|at| [if at == count { 6 } else { 60 }, 0, 0, 0, 0, 0, 0, 0]).collect();
    payload.extend(tcp(tcp_flag::SYN, 5));
    parse(&v6(60, &payload)[..], 0)
}

#[test]
fn what_is_behind_more_extension_headers_than_there_are_kinds_is_hidden() {
    let of = |count| behind_extensions(count).map(|packet| (packet.kind, packet.l4));
    assert_eq!(of(7), Ok((Kind::Syn, 40 + 7 * 8)));
    for count in [8, 9, 20] {
        assert_eq!(of(count), Ok((Kind::Hidden, 40)), "{count}");
    }
}

#[test]
fn every_kind_of_extension_header_has_its_length() {
    for (kind, length, size) in [(0, 2, 24), (43, 2, 24), (60, 2, 24), (51, 4, 24), (51, 1, 12), (44, 0, 8)] {
        let mut payload = vec![0; size];
        payload[..2].copy_from_slice(&[6, length]);
        payload.extend(tcp(tcp_flag::SYN, 5));
        let packet = parse(&v6(kind, &payload)[..], 0);
        assert_eq!(packet.map(|packet| packet.l4), Ok(40 + size), "{kind}");
    }
    let to_the_end = v6(43, &[6, 255, 0, 0]);
    let unreadable = parse(&to_the_end[..], 0).map(|packet| packet.kind);
    assert_eq!(unreadable, Ok(Kind::Unreadable), "TCP that would begin after the packet's end");
}

#[test]
fn a_packet_without_a_length_is_as_long_as_it_is() {
    let (mut four, mut six) = (v4(6, 2, &tcp(tcp_flag::SYN, 5)), v6(6, &tcp(tcp_flag::SYN, 5)));
    let whole = (parse(&four[..], 0).unwrap(), parse(&six[..], 0).unwrap());
    four[2..4].copy_from_slice(&[0, 0]);
    six[4..6].copy_from_slice(&[0, 0]);
    assert_eq!((parse(&four[..], 0).unwrap(), parse(&six[..], 0).unwrap()), whole);
    for cut in [four, six] {
        assert_eq!(parse(&cut[..cut.len() - 1], 0).unwrap().kind, Kind::Unreadable);
    }
}

#[test]
fn a_datagram_without_a_length_is_one_in_ipv6_only() {
    assert_eq!(parse(&v6(17, &udp(0, 9))[..], 0).unwrap().kind, Kind::Datagram);
    assert_eq!(parse(&v4(17, 0, &udp(0, 9))[..], 0).unwrap().kind, Kind::Unreadable);
}

#[test]
fn a_first_fragment_without_the_flags_is_not_read() {
    let header = tcp(tcp_flag::SYN, 6);
    for (length, kind) in [(2, Kind::Unreadable), (8, Kind::Unreadable), (16, Kind::Syn), (24, Kind::Syn)] {
        let mut four = v4(6, 0, &header[..length]);
        four[6] = 0x20;
        let mut six = vec![6, 0, 0, 0x01, 0, 0, 0, 1];
        six.extend(&header[..length]);
        for packet in [four, v6(44, &six)] {
            let parsed = parse(&packet[..], 0).unwrap();
            let port = if length < 4 { [0, 0] } else { [0, 80] };
            assert_eq!((parsed.kind, parsed.tuple.dport), (kind, port), "{length}");
            assert!(parsed.fragment().is_some());
        }
    }
}

#[test]
fn a_tag_of_vlan_0_is_none() {
    let tagged = |tags: &[[u8; 4]]| {
        let mut frame = vec![0; 12];
        frame.extend(tags.concat());
        frame.extend([0x08, 0x00]);
        frame.extend(v4(6, 0, &tcp(tcp_flag::SYN, 5)));
        assert_eq!(parse(&frame[..], 14), Err(Reason::OtherProtocol));
        parse_tagged(&frame[..], 14).map(|packet| (packet.kind, packet.tuple.dst.v4()))
    };
    let hidden = Ok((Kind::Hidden, [8, 8, 8, 8]));
    assert_eq!(tagged(&[[0x81, 0, 0xe0, 0]]), hidden);
    assert_eq!(tagged(&[[0x88, 0xa8, 0, 0], [0x81, 0, 0, 0]]), hidden);
    assert_eq!(tagged(&[[0x81, 0, 0, 5]]), Err(Reason::OtherProtocol));
    assert_eq!(tagged(&[[0x81, 0, 0, 0], [0x81, 0, 0, 5]]), Err(Reason::OtherProtocol));
}

#[test]
fn a_length_that_promises_more_than_there_is_hides_no_header() {
    for mut packet in [v4(6, 2, &tcp(tcp_flag::SYN, 5)), v6(6, &tcp(tcp_flag::SYN, 5))] {
        let whole = parse(&packet[..], 0);
        let length_at = if packet[0] >> 4 == 4 { 2 } else { 4 };
        packet[length_at..length_at + 2].copy_from_slice(&[0xff, 0xff]);
        assert!(whole.is_ok());
        assert_eq!(parse(&packet[..], 0), whole);
    }
}

#[test]
fn only_untagged_frames_with_ip_are_looked_into() {
    let framed = |ether_type: u16| {
        let mut frame = vec![0; 12];
        frame.extend(ether_type.to_be_bytes());
        frame.extend(v4(6, 0, &tcp(tcp_flag::SYN, 5)));
        parse(&frame[..], 14).map(|packet| packet.l4)
    };
    assert_eq!(framed(0x0800), Ok(34));
    for (ether_type, what) in [(0x8100, "VLAN"), (0x88a8, "QinQ"), (0x8847, "MPLS"), (0x0806, "ARP")] {
        assert_eq!(framed(ether_type), Err(Reason::OtherProtocol), "{what}");
    }
    assert_eq!(parse(&[0; 13][..], 14), Err(Reason::Malformed));
}

#[test]
fn later_fragments_have_no_ports() {
    let mut first = v4(6, 0, &tcp(tcp_flag::SYN, 5));
    first[6] = 0x20; // more fragments
    assert_eq!(parse(&first[..], 0).unwrap().kind, Kind::Syn);
    let key = parse(&first[..], 0).unwrap().fragment();
    assert!(key.is_some());
    first[7] = 1;
    let later = parse(&first[..], 0).unwrap();
    assert_eq!((later.kind, later.fragment()), (Kind::LaterFragment, key));
    assert_eq!((later.tuple.sport, later.tuple.dport), ([0, 0], [0, 0]));
    let mut first = vec![6, 0, 0, 0x01, 0, 0, 0, 1]; // more fragments
    first.extend(tcp(tcp_flag::SYN, 5));
    let first = parse(&v6(44, &first)[..], 0).unwrap();
    assert_eq!(first.kind, Kind::Syn);
    let later = parse(&v6(44, &[6, 0, 0, 0x08, 0, 0, 0, 1])[..], 0).unwrap();
    assert_eq!((later.kind, later.fragment()), (Kind::LaterFragment, first.fragment()));
    let mut atomic = vec![6, 0, 0, 0, 0, 0, 0, 1]; // RFC 6946: neither offset nor more
    atomic.extend(tcp(tcp_flag::SYN, 5));
    assert_eq!(parse(&v6(44, &atomic)[..], 0).unwrap().piece, Piece::Whole);
    // What a later fragment begins with is no extension header.
    let data = v6(44, &[60, 0, 0, 0x08, 0, 0, 0, 1, 17, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(parse(&data[..], 0), Err(Reason::OtherProtocol));
}

fn udp(length: u16, payload: usize) -> Vec<u8> {
    let mut p = vec![0x30, 0x39, 0, 53, (length >> 8) as u8, length as u8, 0, 0];
    p.resize(8 + payload, 7);
    p
}

#[test]
fn a_datagram_with_its_hops() {
    for payload in [0, 1, 100] {
        for packet in
            [v4(17, 2, &udp(8 + payload, payload.into())), v6(17, &udp(8 + payload, payload.into()))]
        {
            let parsed = parse(&packet[..], 0).unwrap();
            assert_eq!((parsed.protocol, parsed.kind, parsed.hops), (Protocol::Udp, Kind::Datagram, 64));
            assert_eq!((parsed.tuple.sport, parsed.tuple.dport), ([0x30, 0x39], [0, 53]));
        }
    }
    for (length, payload) in [(7, 10), (0, 10), (19, 10), (0xffff, 10)] {
        let packet = parse(&v4(17, 0, &udp(length, payload))[..], 0).unwrap();
        assert_eq!((packet.kind, packet.tuple.dport), (Kind::Unreadable, [0, 53]), "{length}");
    }
}

#[test]
fn a_first_fragment_holds_a_part_of_its_datagram() {
    let mut first = v4(17, 0, &udp(4008, 1472));
    assert_eq!(parse(&first[..], 0).unwrap().kind, Kind::Unreadable);
    first[6] = 0x20;
    assert_eq!(parse(&first[..], 0).unwrap().kind, Kind::Datagram);
}

#[test]
fn an_icmp_error_quotes_tcp_or_udp() {
    let mut error = vec![3, 3, 0, 0, 0, 0, 0, 0];
    error.extend(v4(17, 0, &udp(8, 0)));
    let packet = parse(&v4(1, 0, &error)[..], 0).unwrap();
    assert_eq!((packet.protocol, packet.kind), (Protocol::Udp, Kind::IcmpError));
    assert_eq!(packet.tuple.sport, [0, 53]);
    error[8 + 9] = 47;
    assert_eq!(parse(&v4(1, 0, &error)[..], 0), Err(Reason::OtherProtocol), "GRE");
}

#[test]
fn an_icmp_error_leads_to_whoever_sent_the_quoted_packet() {
    let mut error = vec![3, 4, 0, 0, 0, 0, 0x05, 0xdc];
    error.extend(&v4(6, 0, &tcp(tcp_flag::ACK, 5))[..28]);
    let packet = parse(&v4(1, 0, &error)[..], 0).unwrap();
    assert_eq!(packet.kind, Kind::IcmpError);
    assert_eq!(IpAddr::from(packet.tuple.dst), "10.0.0.1".parse::<IpAddr>().unwrap());
    assert_eq!(packet.tuple.dport, [0x30, 0x39]);
    let mut too_big = vec![2, 0, 0, 0, 0, 0, 0x05, 0];
    too_big.extend(&v6(6, &tcp(tcp_flag::ACK, 5))[..48]);
    assert_eq!(parse(&v6(58, &too_big)[..], 0).unwrap().kind, Kind::IcmpError);
    assert_eq!(
        parse(&v4(1, 0, &[8, 0, 0, 0, 0, 0, 0, 0])[..], 0),
        Err(Reason::OtherProtocol),
        "echo request"
    );
}

#[test]
fn a_redirect_is_told_from_other_icmp() {
    let body = |kind: u8| [kind, 1, 0, 0, 10, 0, 0, 1];
    for (packet, is) in [
        (v4(1, 0, &body(5)), true),
        (v4(1, 0, &body(3)), false),
        (v4(17, 0, &body(5)), false),
        (v6(58, &body(137)), true),
        (v6(58, &body(136)), false),
        (v6(17, &body(137)), false),
    ] {
        assert_eq!(is_redirect(&packet[..], 0), is, "{packet:?}");
        assert!(!is_redirect(&packet[..15], 0));
    }
}

#[test]
fn headers_that_contradict_each_other() {
    let good = v4(6, 0, &tcp(tcp_flag::SYN, 5));
    let broken = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        parse(&packet[..], 0).map(|packet| packet.kind)
    };
    assert_eq!(broken(0, 0x44), Err(Reason::Malformed), "header shorter than 20 bytes");
    assert_eq!(broken(3, 19), Err(Reason::Malformed), "total length shorter than the header");
    assert_eq!(broken(3, 39), Ok(Kind::Unreadable), "TCP header past the total length");
    assert_eq!(broken(32, 0x40), Ok(Kind::Unreadable), "TCP header shorter than 20 bytes");
    assert_eq!(broken(0, 0x55), Err(Reason::OtherProtocol), "version 5");
    let mut mapped = v6(6, &tcp(tcp_flag::SYN, 5));
    mapped[8..24].copy_from_slice(&Addr::from_v4([10, 0, 0, 1]).0);
    assert_eq!(parse(&mapped[..], 0), Err(Reason::Malformed));
}

proptest! {
    #[test]
    fn a_payload_goes_through_one_register(protocol: u8, l4: u16, id: [u8; 4]) {
        for piece in [Piece::Whole, Piece::First { id }, Piece::Later { id }] {
            let payload = Payload { protocol, l4: l4.into(), piece };
            prop_assert_eq!(Payload::from_number(Payload::to_number(Some(payload))), Some(payload));
        }
        prop_assert_eq!(Payload::from_number(Payload::to_number(None)), None);
    }

    #[test]
    fn truncation_is_never_a_packet(cut in 0usize..64, options in 0usize..10, v6_packet: bool) {
        let whole = if v6_packet { v6(6, &tcp(tcp_flag::SYN, 6)) } else { v4(6, options, &tcp(tcp_flag::SYN, 6)) };
        let ports_end = parse(&whole[..], 0).unwrap().l4 + TCP_FLAGS + 1;
        let parsed = parse(&whole[..cut.min(whole.len())], 0);
        prop_assert_eq!(parsed.is_ok_and(|packet| packet.kind == Kind::Syn), cut >= ports_end);
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), l3 in 0usize..20) {
        if let Ok(packet) = parse(&bytes[..], l3) {
            prop_assert!(packet.l4 <= bytes.len());
        }
    }
}
