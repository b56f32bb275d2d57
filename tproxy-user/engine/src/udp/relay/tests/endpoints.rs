//! As whom clients are seen, and who may send to them there.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use super::rig::*;
use crate::{
    config::{Action, Nat, Scope, Source, Treatment},
    udp::{
        End,
        relay::{Stranded, Up},
        table::Flow,
    },
};

#[test]
fn sessions_of_one_endpoint_share_a_socket_until_the_last_ends() {
    let mut rig = Rig::new(rule(Action::Direct));
    let [one, other] = [1, 2].map(|dst| rig.session(flow(1, 1, dst, 443)));
    let another = rig.session(flow(1, 2, 1, 443));
    let mapping = |rig: &mut Rig, id| rig.relay.mapping_of(id).unwrap();
    let shared = mapping(&mut rig, one);
    assert_eq!(mapping(&mut rig, other), shared);
    assert_ne!(mapping(&mut rig, another), shared);
    let client = flow(1, 1, 1, 1).client.0;
    assert!(rig.endpoints.port_of(client).is_some());
    rig.relay.end(one, End::Idle, rig.now);
    rig.carry_out();
    assert!(rig.mappings.contains(&shared));
    rig.relay.end(other, End::Idle, rig.now);
    rig.carry_out();
    assert!(!rig.mappings.contains(&shared));
    assert_eq!(rig.endpoints.port_of(client), None);
}

#[test]
fn what_an_application_sees_as_a_clients_endpoint_is_one_towards_it_only() {
    for (source, shares) in [(Source::Host, true), (Source::Client, false), (Source::ClientPort, false)] {
        let mut rig = Rig::new(rule_of(Scope::Inbound, Treatment { source, ..Action::Direct.into() }));
        let id = rig.session(flow(1, 1, 1, 443));
        assert_eq!(rig.relay.mapping_of(id).is_some(), shares, "{source:?}");
        let own = flow(1, 1, 1, 443);
        rig.relay.end(id, End::Idle, rig.now);
        rig.carry_out();
        // What it was to the application is forgotten, too.
        let forgotten: BTreeSet<SocketAddr> = rig.forgotten.iter().map(|flow| flow.client.0).collect();
        assert_eq!(forgotten.len(), if shares { 1 } else { 2 });
        assert!(forgotten.contains(&own.client.0));
    }
}

#[test]
fn a_stranger_is_told_from_a_peer_and_may_be_answered_so_many_times_a_second() {
    let mut rig = Rig::new(rule(Action::Direct));
    let known = flow(1, 1, 1, 443);
    let id = rig.session(known);
    let mapping = rig.relay.mapping_of(id).unwrap();
    assert_eq!(rig.relay.session_with(mapping, known.dst.0), Some(id));
    let stranger: SocketAddr = ([9, 9, 9, 9], 9).into();
    assert_eq!(rig.relay.session_with(mapping, stranger), None);
    let found = rig.relay.stranger(mapping, stranger).unwrap();
    assert_eq!((found.client, found.seen_by), (known.client, None));
    for _ in 0..1000 {
        rig.relay.expect(mapping, stranger, rig.now);
    }
    rig.carry_out();
    assert_eq!(rig.expected.len(), 100);
    // Another client is seen as the world sees it.
    let other = flow(2, 7, 1, 443);
    rig.session(other);
    let (port, peer, _) = rig.relay.stranger(mapping, other.client.0).unwrap().seen_by.unwrap();
    assert_eq!((Some(port), peer), (rig.endpoints.port_of(other.client.0), known.dst.0));
}

#[test]
fn what_is_not_from_the_peer_of_a_socket_is_kept_out() {
    let mut rig = Rig::new(rule(Treatment { nat: Nat::PerDestination, ..Action::Direct.into() }));
    let known = flow(1, 1, 1, 443);
    let id = rig.session(known);
    let from = |address| crate::udp::batch::Run::one(address, b"x");
    assert!(rig.relay.is_peers(id, &from(known.dst.0)));
    assert!(!rig.relay.is_peers(id, &from(([9, 9, 9, 9], 9).into())));
    assert_eq!(rig.counted().not_from_peer, 1);
}

#[test]
fn sessions_go_on_from_another_address_when_theirs_is_gone() {
    for nat in [Nat::EndpointIndependent, Nat::PerDestination] {
        let mut rig = Rig::new(rule(Treatment { nat, source: Source::Host, ..Action::Direct.into() }));
        let id = rig.session(flow(1, 1, 1, 443));
        let other_address = Arc::new(BTreeSet::from([[10, 1, 1, 1].into()]));
        assert_eq!(rig.relay.hear(other_address), []);
        let gone = Arc::new(BTreeSet::from([HOST.into()]));
        let expected = match rig.relay.mapping_of(id) {
            Some(index) => Stranded::Shared(index, id),
            None => Stranded::Own(id),
        };
        assert_eq!(rig.relay.hear(Arc::clone(&gone)), [expected]);
        // There is no other yet.
        rig.relay.stays();
        assert_eq!(rig.relay.hear(gone), [expected], "a route has come, perhaps");
        assert!(!rig.relay.is_better(expected, Some((HOST, 9).into())));
        let anew = rig.local([192, 0, 2, 2]);
        assert!(rig.relay.is_better(expected, Some(anew)));
        rig.relay.moved(expected, Some(anew));
        assert_eq!(rig.counted().moved, 1);
        // There may be a better one for some seconds, and then it is left alone.
        let looks: Vec<_> = (0..9).map(|_| rig.relay.look_again().len()).collect();
        assert_eq!(looks.iter().sum::<usize>(), 5, "{looks:?}");
        if let Stranded::Shared(..) = expected {
            let client = flow(1, 1, 1, 1).client.0;
            assert_eq!(rig.endpoints.port_of(client), Some(anew.port()), "others see it there");
        }
    }
}

#[test]
fn who_asks_an_application_of_this_host_goes_on_doing_so() {
    let mut rig = Rig::new(rule_of(Scope::Inbound, Action::Direct));
    rig.session(flow(1, 1, 1, 443));
    assert_eq!(rig.relay.hear(Arc::new(BTreeSet::from([HOST.into()]))), []);
}

#[test]
fn datagrams_go_where_their_session_leads() {
    let dst = flow(1, 1, 1, 443).dst.0;
    let upstream: SocketAddr = ([10, 9, 9, 9], 9).into();
    for (action, nat) in [
        (Action::Direct, Nat::EndpointIndependent),
        (Action::Direct, Nat::PerDestination),
        (Action::Upstream(upstream.into()), Nat::EndpointIndependent),
    ] {
        let to = if action == Action::Direct { dst } else { upstream };
        let mut rig = Rig::new(rule(Treatment { nat, ..action.into() }));
        let id = rig.session(flow(1, 1, 1, 443));
        match rig.up(id, b"x").unwrap() {
            Up::Own(peer, _) | Up::Shared(_, peer, _) => assert_eq!(peer, to),
            Up::Taker | Up::Answer => panic!("it goes nowhere"),
        }
        let Flow { client, .. } = rig.relay.down(id).unwrap().flow;
        assert_eq!(client, flow(1, 1, 1, 443).client);
        let counted = rig.counted();
        assert_eq!((counted.datagrams_up, counted.bytes_up), (1, 1));
    }
}
