//! How sessions end, and what errors come to.

use std::time::Duration;

use super::{super::super::dns::tests as dns, rig::*};
use crate::{
    config::{Action, Nat, Treatment},
    flows::Filter,
    socket::{IcmpError, PeerError},
    udp::{End, channel::Sent},
};

#[test]
fn silence_ends_a_session_sooner_while_only_one_side_has_sent() {
    let mut rig = Rig::new(rule(Action::Direct));
    let (one_way, two_way) = (flow(1, 1, 1, 443), flow(2, 1, 1, 443));
    rig.session(one_way);
    let id = rig.session(two_way);
    rig.down(id, b"x", &sent(b"x"));
    rig.wait(ONE_WAY - Duration::from_secs(1));
    rig.sweep(false);
    assert!(rig.ended.is_empty());
    rig.wait(Duration::from_secs(1));
    rig.sweep(false);
    assert_eq!(rig.ended, [(one_way, End::Idle)]);
    rig.wait(TWO_WAY - ONE_WAY);
    rig.sweep(false);
    assert_eq!(rig.ended[1..], [(two_way, End::Idle)]);
    assert_eq!((rig.live(), rig.sessions.len(), rig.mappings.len()), (0, 0, 0));
}

#[test]
fn while_draining_a_second_of_silence_is_enough() {
    let mut rig = Rig::new(rule(Action::Direct));
    rig.session(flow(1, 1, 1, 443));
    rig.sweep(true);
    assert_eq!(rig.live(), 1);
    rig.wait(Duration::from_secs(1));
    rig.sweep(false);
    assert_eq!(rig.live(), 1);
    rig.sweep(true);
    assert_eq!(rig.ended, [(flow(1, 1, 1, 443), End::Stopped)]);
}

#[test]
fn dns_ends_with_its_last_answer_and_nothing_else_does() {
    let (query, answer) = (dns::query(b'x'), dns::answer(b'x'));
    for (port, said, told, ends) in [
        (53, &query[..], &answer[..], true),
        (53, b"query", &answer, false),
        (53, &query, b"answer", false),
        (54, &query, &answer, false),
    ] {
        let mut rig = Rig::new(rule(Action::Direct));
        let id = rig.session(flow(1, 1, 1, port));
        rig.up(id, said);
        rig.up(id, said);
        rig.down(id, told, &sent(told));
        rig.sweep(false);
        assert!(rig.ended.is_empty(), "one is open");
        rig.down(id, told, &sent(told));
        // Another question just before it is found to be over.
        rig.up(id, said);
        rig.sweep(false);
        assert!(rig.ended.is_empty());
        rig.down(id, told, &sent(told));
        rig.sweep(false);
        assert_eq!(rig.ended.len(), usize::from(ends), "{port} {said:?} {told:?}");
    }
}

#[test]
fn a_client_that_nobody_listens_at_is_gone() {
    let mut rig = Rig::new(rule(Action::Direct));
    let id = rig.session(flow(1, 1, 1, 443));
    rig.down(id, b"x", &Sent { refused: true, ..sent(b"x") });
    assert_eq!(rig.ended, [(flow(1, 1, 1, 443), End::ClientRefused)]);
    assert_eq!(rig.relay.up(id), None);
}

#[test]
fn who_is_told_to_end_does_and_in_the_end_all_do() {
    let mut rig = Rig::new(rule(Action::Direct));
    for client in [1, 2] {
        rig.session(flow(client, 1, 1, 443));
    }
    let filter = Filter { client: Some("10.0.0.1".parse().unwrap()), ..Filter::default() };
    assert_eq!(rig.flows.close(&filter), 1);
    rig.relay.end_closing(rig.now);
    rig.carry_out();
    rig.relay.end_all(rig.now);
    rig.carry_out();
    assert_eq!(rig.ended, [(flow(1, 1, 1, 443), End::Closed), (flow(2, 1, 1, 443), End::Stopped)]);
}

#[test]
fn a_socket_that_cannot_be_watched_ends_its_session() {
    let mut rig = Rig::new(rule(Action::Direct));
    let id = rig.session(flow(1, 1, 1, 443));
    rig.relay.unwatched(id, rig.now);
    rig.carry_out();
    assert_eq!((rig.live(), rig.counted().out_of_descriptors), (0, 1));
}

#[test]
fn an_error_is_the_clients_that_sent_and_there_are_not_too_many() {
    let error = |peer, port| PeerError {
        peer: ([8, 8, 8, peer], port).into(),
        reporter: [1, 1, 1, 1].into(),
        error: IcmpError::PacketTooBig { mtu: 1400 },
    };
    for nat in [Nat::EndpointIndependent, Nat::PerDestination] {
        let mut rig = Rig::new(rule(Treatment { nat, ..Action::Direct.into() }));
        let known = flow(1, 1, 1, 443);
        let id = rig.session(known);
        let about = |rig: &mut Rig, sent, error: &PeerError| match rig.relay.mapping_of(id) {
            Some(index) => rig.relay.mapping_error(index, sent, error, rig.now),
            None => rig.relay.session_error(id, error, rig.now),
        };
        about(&mut rig, None, &error(1, 443));
        // It did not even leave.
        about(&mut rig, Some(id), &error(1, 0));
        rig.carry_out();
        let told = (known.dst.0.ip(), IcmpError::PacketTooBig { mtu: 1400 }, known);
        assert_eq!(rig.told, [told, told]);
        for _ in 0..2000 {
            about(&mut rig, None, &error(1, 443));
        }
        rig.carry_out();
        assert_eq!((rig.told.len(), rig.counted().icmp_suppressed), (1000, 1002));
    }
}

#[test]
fn a_mapping_that_knows_no_port_tells_nobody_who_has_not_sent() {
    let mut rig = Rig::new(rule(Action::Direct));
    let id = rig.session(flow(1, 1, 1, 443));
    let index = rig.relay.mapping_of(id).unwrap();
    let error = PeerError {
        peer: ([8, 8, 8, 1], 0).into(),
        reporter: [1, 1, 1, 1].into(),
        error: IcmpError::PacketTooBig { mtu: 1400 },
    };
    rig.relay.mapping_error(index, None, &error, rig.now);
    rig.carry_out();
    assert!(rig.told.is_empty());
}

#[test]
fn what_this_host_cannot_send_is_told() {
    let mut rig = Rig::new(rule(Action::Direct));
    let known = flow(1, 1, 1, 443);
    let id = rig.session(known);
    for (errno, told) in [
        (libc::ENETUNREACH, Some(IcmpError::NetUnreachable)),
        (libc::EHOSTUNREACH, Some(IcmpError::HostUnreachable)),
        (libc::EPERM, Some(IcmpError::AdminProhibited)),
        (libc::EMSGSIZE, None),
        (libc::EAGAIN, None),
    ] {
        let run = crate::udp::batch::Run::one(known.client.0, b"x");
        rig.relay.sent_up(id, &run, &failed(errno), rig.now);
        rig.carry_out();
        assert_eq!(rig.told.pop().map(|(_, told, _)| told), told, "{errno}");
    }
    assert_eq!(rig.counted().send_errors, 5);
}
