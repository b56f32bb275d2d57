//! Sessions as they are seen, and closed, from outside of the worker.

use tproxy_netns::Family;

use super::rig::*;
use crate::{
    config::{Action, Nat, Treatment},
    flows::{Filter, FlowState},
    udp::End,
};

#[test]
fn a_session_shows_what_it_moves_and_ends_when_it_is_told_to() {
    for nat in [Nat::EndpointIndependent, Nat::PerDestination] {
        let rig = Rig::new(rule(Treatment { nat, ..Action::Direct.into() }));
        let (client, server) = rig.pair(Family::V4);
        let other = rig.client_of(server.local_addr().unwrap());
        client.send(b"12345").unwrap();
        let (_, from) = receive(&server, &mut [0; 5]);
        let of_client = |state| Filter {
            client: Some(client.local_addr().unwrap().to_string().parse().unwrap()),
            state: Some(state),
            ..Filter::default()
        };
        let one_way = rig.flows.select(&of_client(FlowState::OneWay));
        assert_eq!(one_way.len(), 1);
        assert_eq!(one_way[0].upstream(), Some(server.local_addr().unwrap()));
        server.send_to(b"123", from).unwrap();
        receive(&client, &mut [0; 3]);
        exchange(&other, &server);
        // By now the worker has noted what it sent before.
        assert_eq!(one_way[0].bytes(), (5, 3));
        assert_eq!(rig.flows.close(&of_client(FlowState::TwoWay)), 1);
        let counted = rig.wait_until(|counted| counted.ended(End::Closed) == 1);
        assert_eq!(counted.active(), 1, "{counted}");
        exchange(&other, &server);
        // The next datagram is another session's.
        exchange(&client, &server);
        assert_eq!(rig.counted().sessions, 3);
    }
}
