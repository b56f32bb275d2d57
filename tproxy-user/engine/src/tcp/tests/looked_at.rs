//! Connections as they are seen, and closed, from outside of the worker.

use std::io::{Read, Write};

use super::rig::*;
use crate::{
    config::Action,
    family::Family,
    flows::{Filter, FlowState},
    mark::Mark,
    socket,
    tcp::End,
};

#[test]
fn bytes_are_seen_while_a_connection_lives() {
    let (rig, server) = upstream();
    let (mut client, mut upstream) = rig.pair(&server);
    client.write_all(&[1; 1000]).unwrap();
    upstream.read_exact(&mut [0; 1000]).unwrap();
    upstream.write_all(&[2; 300]).unwrap();
    client.read_exact(&mut [0; 300]).unwrap();
    // What was read at the other end was noted just before or just after.
    let flow = rig.until(|flow| flow.bytes() == (1000, 300));
    assert_eq!(flow.selection().client.0, client.local_addr().unwrap());
    assert_eq!(flow.selection().dst.0, rig.address);
    assert_eq!(flow.upstream(), Some(server.local_addr().unwrap()));
    assert_eq!((flow.state(), flow.end()), (FlowState::Relaying, None));
    drop((client, upstream));
    let flows = rig.flows.clone();
    rig.assert_end(End::Eof);
    assert!(flows.select(&Filter::default()).is_empty());
    assert_eq!((flow.bytes(), flow.end()), ((1000, 300), Some("eof")));
}

#[test]
fn one_that_is_closed_is_reset_on_both_sides_and_no_other() {
    let (rig, server) = upstream();
    let (client, upstream) = rig.pair(&server);
    let (mut other, mut others_upstream) = rig.pair(&server);
    let filter = Filter {
        client: Some(client.local_addr().unwrap().to_string().parse().unwrap()),
        ..Filter::default()
    };
    assert_eq!(rig.flows.close(&filter), 1);
    assert_reset(client);
    assert_reset(upstream);
    other.write_all(b"x").unwrap();
    others_upstream.read_exact(&mut [0]).unwrap();
    drop((other, others_upstream));
    let counted = rig.finish();
    assert_eq!((counted.ended(End::Closed), counted.ended(End::Eof)), (1, 1), "{counted}");
}

#[test]
fn one_that_still_connects_or_is_being_answered_can_be_closed() {
    let hole = socket::black_hole(Family::V4, Mark::DEFAULT).unwrap();
    let silent = hole.local_addr().unwrap().as_socket().unwrap();
    // A client that says nothing is waited for.
    for (action, state) in [
        (Action::Upstream(silent.into()), FlowState::Connecting),
        (Action::Respond("late".into()), FlowState::Answering),
    ] {
        let rig = Rig::new(action);
        let client = rig.client();
        rig.until(|flow| flow.state() == state);
        assert_eq!(rig.flows.close(&Filter { state: Some(state), ..Filter::default() }), 1);
        assert_reset(client);
        rig.assert_end(End::Closed);
    }
}
