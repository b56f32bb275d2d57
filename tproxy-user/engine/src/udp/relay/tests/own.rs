//! Sockets of sessions' own towards their clients.

use super::{super::own::BUSY, rig::*};
use crate::{
    config::{Action, Scope, SessionLimits},
    family::Family,
    udp::{End, session::Reply},
};

#[test]
fn a_session_has_none_until_it_is_busy_and_gives_it_back_when_it_is_quiet() {
    let mut rig = Rig::new(rule(Action::Direct));
    let known = flow(1, 1, 1, 443);
    let id = rig.session(known);
    for _ in 0..BUSY - 1 {
        rig.up(id, b"x");
    }
    rig.next_second();
    rig.up(id, b"x");
    assert!(!rig.sessions[&id].0 && rig.forgotten.is_empty(), "in no second it was busy");
    rig.be_busy(id);
    assert!(rig.sessions[&id].0);
    assert_eq!(rig.forgotten, [known], "its own socket has it");
    rig.relay.take_over(Family::V4, true);
    rig.carry_out();
    assert!(rig.read.contains(&id));
    rig.next_second();
    assert!(rig.sessions[&id].0, "it was busy just now");
    rig.up(id, b"x");
    rig.next_second();
    assert!(!rig.sessions[&id].0);
    assert_eq!(rig.expected, [known], "the datapath brings it to the listener again");
    // And once more.
    rig.be_busy(id);
    assert!(rig.sessions[&id].0);
    rig.relay.end(id, End::Idle, rig.now);
    rig.carry_out();
    assert_eq!(rig.forgotten, [known; 2]);
}

#[test]
fn where_somebody_holds_the_port_it_is_tried_once_and_the_datapath_remembers_the_flow() {
    let mut rig = Rig::new(rule(Action::Direct));
    rig.held = true;
    let id = rig.session(flow(1, 1, 1, 443));
    for _ in 0..3 {
        rig.be_busy(id);
        rig.next_second();
    }
    assert_eq!(rig.relay.down(id).unwrap().reply, Reply::OnlyRaw);
    assert_eq!((rig.counted().reply_fallbacks, rig.sessions[&id].0), (1, false));
    assert!(rig.forgotten.is_empty());
    rig.relay.end(id, End::Idle, rig.now);
    rig.carry_out();
    assert_eq!(rig.forgotten, [flow(1, 1, 1, 443)]);
}

#[test]
fn ports_of_this_hosts_own_addresses_are_never_held() {
    for scope in Scope::ALL {
        let mut rig = Rig::new(rule_of(scope, Action::Direct));
        let id = rig.session(flow(1, 1, 1, 443));
        rig.be_busy(id);
        assert_eq!(rig.sessions[&id].0, scope != Scope::Inbound);
    }
}

#[test]
fn a_socket_is_read_when_the_listener_was_and_only_the_session_that_waited() {
    let sessions = SessionLimits { total: 1, per_client: 1 };
    let mut rig = Rig::limited(rule(Action::Direct), sessions);
    let begin = |rig: &mut Rig, port| {
        let id = rig.session(flow(1, port, 1, 443));
        rig.be_busy(id);
        id
    };
    let id = begin(&mut rig, 1);
    assert!(rig.relay.is_waiting(id) && rig.relay.waits_for(Family::V4));
    // It ends, and another is in its place.
    assert_eq!(begin(&mut rig, 2), id);
    rig.relay.take_over(Family::V4, false);
    rig.carry_out();
    assert!(rig.read.is_empty());
    rig.relay.has_read(Family::V4, ROOM);
    rig.relay.take_over(Family::V4, false);
    rig.carry_out();
    assert!(rig.read.contains(&id) && !rig.relay.is_waiting(id));
    // Of a third, the end of the listener is known at once.
    assert_eq!(begin(&mut rig, 3), id);
    rig.next_second();
    assert!(rig.sessions[&id].0, "it is given back when it was read");
    rig.relay.take_over(Family::V4, true);
    rig.carry_out();
    assert!(rig.read.contains(&id) && !rig.relay.waits_for(Family::V4));
}
