//! From a flow's first datagram to its session, or to none.

use std::io;

use tproxy_common::abi::Origin;

use super::rig::*;
use crate::{
    config::{Action, Nat, Scope, SessionLimits, Source, Treatment},
    flow::{ClientAddr, OriginalDst},
    generation::RuleNumber,
    intercept::sessions,
    socket::{Datagram, IcmpError, Pieces, SocketError, TrafficClass},
    udp::{
        End, Selected,
        relay::{Step, Up, Wanted},
        table::Flow,
    },
};

const FLOW: fn() -> Flow = || flow(1, 1, 1, 443);

#[test]
fn each_action_wants_what_it_needs_and_what_the_datapath_does_is_none_of_ours() {
    let upstream: std::net::SocketAddr = ([10, 9, 9, 9], 9).into();
    let actions = [
        (Action::Direct, Nat::PerDestination, Some(Wanted::Peer(FLOW().dst.0))),
        (Action::Upstream(upstream.into()), Nat::EndpointIndependent, Some(Wanted::Peer(upstream))),
        (Action::Respond("text".into()), Nat::EndpointIndependent, Some(Wanted::Nothing)),
        (Action::HandOver(sessions().0), Nat::EndpointIndependent, Some(Wanted::Taker)),
        (Action::Reject, Nat::EndpointIndependent, None),
        (Action::Drop, Nat::EndpointIndependent, None),
        (Action::Pass, Nat::EndpointIndependent, None),
    ];
    for (action, nat, expected) in actions {
        let mut rig = Rig::new(rule(Treatment { nat, ..action.into() }));
        let mut wanted = None;
        let id = rig.begin(FLOW(), selected(), |opening| {
            wanted = Some(*opening.wanted());
            Ok(())
        });
        assert_eq!((id.is_some(), wanted), (expected.is_some(), expected));
        assert_eq!(rig.counted().undecided, u64::from(expected.is_none()));
        assert_eq!(rig.forgotten.len(), usize::from(expected.is_none()), "it is decided anew");
    }
}

#[test]
fn what_nobody_has_selected_goes_nowhere_and_what_was_put_together_goes_on() {
    for (why, dst, [undecided, to_ourselves]) in [
        (None, FLOW().dst, [1, 0]),
        (Some(Selected::By(RuleNumber(9), Origin::default(), None)), FLOW().dst, [1, 0]),
        (selected(), OriginalDst(([127, 0, 0, 1], 1).into()), [0, 1]),
        (Some(Selected::Carry), FLOW().dst, [0, 0]),
    ] {
        let mut rig = Rig::new(rule(Action::Direct));
        let id = rig.begin(Flow { dst, ..FLOW() }, why, |_| panic!("nothing is opened"));
        let counted = rig.counted();
        assert_eq!((id, counted.undecided, counted.to_ourselves), (None, undecided, to_ourselves));
        assert_eq!(rig.forgotten.len() as u64, undecided + to_ourselves);
    }
}

#[test]
fn a_client_is_told_why_there_is_no_way() {
    for (kind, told) in [
        (io::ErrorKind::NetworkUnreachable, Some(IcmpError::NetUnreachable)),
        (io::ErrorKind::HostUnreachable, Some(IcmpError::HostUnreachable)),
        (io::ErrorKind::PermissionDenied, Some(IcmpError::AdminProhibited)),
        (io::ErrorKind::Other, None),
    ] {
        // Routing says so, or the socket.
        for by_routing in [true, false] {
            let mut rig = Rig::new(rule(Action::Direct));
            if by_routing {
                let Flow { client, dst } = FLOW();
                let (class, pieces) = (TrafficClass(0), Pieces::One);
                let datagram = Datagram { client, dst, class, pieces, ttl: 1, payload: b"" };
                let Step::FindWay(beginning) = rig.relay.begin(&datagram, selected(), rig.now) else {
                    panic!("it has no way yet")
                };
                let step = rig.relay.found_way(beginning, Err(kind.into()), false, rig.now);
                assert!(matches!(step, Step::Refused));
                rig.carry_out();
            } else {
                let error = || SocketError::Os { step: "connect", source: kind.into() };
                assert_eq!(rig.begin(FLOW(), selected(), |_| Err(error())), None);
            }
            let expected: Vec<_> = told.map(|told| (FLOW().dst.0.ip(), told, FLOW())).into_iter().collect();
            assert_eq!((&rig.told, rig.counted().no_upstream), (&expected, 1));
        }
    }
}

#[test]
fn the_hop_that_we_are_is_counted_where_the_client_is_elsewhere() {
    for (scope, seen, expected) in [
        (Scope::Forwarded, 64, 63),
        (Scope::Forwarded, 1, 1),
        (Scope::Outbound, 64, 64),
        (Scope::Inbound, 64, 64),
    ] {
        let rule = rule_of(scope, Treatment { nat: Nat::PerDestination, ..Action::Direct.into() });
        let mut rig = Rig::new(rule);
        let Flow { client, dst } = FLOW();
        let datagram =
            Datagram { client, dst, class: TrafficClass(0), pieces: Pieces::One, ttl: seen, payload: b"" };
        let Step::FindWay(beginning) = rig.relay.begin(&datagram, selected(), rig.now) else {
            panic!("no way")
        };
        let egress = crate::socket::Egress::from(crate::mark::Mark::DEFAULT);
        let Step::Open(opening) = rig.relay.found_way(beginning, Ok(egress), false, rig.now) else {
            panic!("no room")
        };
        let id = rig.relay.opened(opening, None, rig.now);
        let Some(Up::Own(_, travel)) = rig.relay.up(id) else { panic!("no socket") };
        assert_eq!(travel.ttl, expected);
    }
}

#[test]
fn where_descriptors_or_ports_lack_others_make_room_and_not_without_end() {
    let any_port = || SocketError::Taken { address: ([0, 0, 0, 0], 0).into() };
    let this_port = || SocketError::Taken { address: ([10, 0, 0, 1], 7).into() };
    // Whose sessions end: of all, or of the client's own.
    for (source, error, of_all) in [
        (Source::Host, (|| lack(libc::EMFILE)) as fn() -> SocketError, Some(true)),
        (Source::Client, || lack(libc::ENOBUFS), Some(true)),
        (Source::Host, any_port, Some(true)),
        (Source::Client, any_port, Some(false)),
        (Source::ClientPort, any_port, Some(false)),
        (Source::Host, this_port, None),
        (Source::Host, || lack(libc::EACCES), None),
    ] {
        let mut rig = Rig::new(rule(Treatment { source, nat: Nat::PerDestination, ..Action::Direct.into() }));
        for port in 1..=20 {
            rig.session(flow(1, port, 1, 443));
            if port <= 3 {
                rig.session(flow(2, port, 1, 443));
            }
        }
        let mut tries = 0;
        let newcomer = flow(2, 99, 1, 443);
        let id = rig.begin(newcomer, selected(), |_| {
            tries += 1;
            Err(error())
        });
        let evicted = match of_all {
            Some(true) => 8,
            Some(false) => 3,
            None => 0,
        };
        assert_eq!((id, tries), (None, evicted + 1), "{source:?} {:?}", error());
        assert_eq!(rig.ended.len(), evicted);
        let whose = ClientAddr(([10, 0, 0, if of_all == Some(true) { 1 } else { 2 }], 1).into()).network();
        assert!(rig.ended.iter().all(|(flow, end)| flow.client.network() == whose && *end == End::Evicted));
        assert_eq!(rig.counted().no_upstream, 1);
    }
}

#[test]
fn one_that_has_to_go_is_closed_before_anything_is_opened() {
    let sessions = SessionLimits { total: 2, per_client: 2 };
    let mut rig =
        Rig::limited(rule(Treatment { nat: Nat::PerDestination, ..Action::Direct.into() }), sessions);
    let first = rig.session(flow(1, 1, 1, 443));
    rig.session(flow(1, 2, 1, 443));
    // The rig would not bear sockets of two sessions in one place.
    assert_eq!(rig.session(flow(1, 3, 1, 443)), first);
    assert_eq!(rig.ended, [(flow(1, 1, 1, 443), End::Evicted)]);
    assert_eq!(rig.sessions.len(), 2);
}
