//! Whatever happens, in whatever order: there are no more sessions than there may be, each has its sockets and nobody else
//! has any, and what is counted is what there is. The rig itself does not bear a socket that is closed twice or left open.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use proptest::prelude::*;

use super::rig::*;
use crate::{
    config::{Action, Nat, SessionLimits, Treatment},
    family::Family,
    socket::SocketError,
    udp::{End, channel::Sent, session::Reply, table::Flow},
};

const LIMITS: SessionLimits = SessionLimits { total: 6, per_client: 4 };

/// What can be had when a session begins, each time that it is asked for.
#[derive(Debug, Clone, Copy)]
enum Luck {
    Good,
    NoDescriptor,
    NoPort,
    NoWay,
}

#[derive(Debug, Clone)]
enum Event {
    Up(Flow, Vec<Luck>),
    Down(Flow),
    /// Very many datagrams of a client, while somebody holds all ports or nobody does.
    Busy(Flow, bool),
    Refused(Flow),
    Listener(bool),
    Time(u64, bool),
    AddressGone(bool),
    EndAll,
}

fn luck() -> impl Strategy<Value = Luck> {
    prop_oneof![
        5 => Just(Luck::Good),
        1 => Just(Luck::NoDescriptor),
        1 => Just(Luck::NoPort),
        1 => Just(Luck::NoWay),
    ]
}

fn any_flow() -> impl Strategy<Value = Flow> {
    let dst_port = prop_oneof![Just(53_u16), Just(443)];
    (1..4_u8, 1..3_u16, 1..3_u8, dst_port)
        .prop_map(|(client, port, dst, dst_port)| flow(client, port, dst, dst_port))
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (any_flow(), prop::collection::vec(luck(), 1..4)).prop_map(|(flow, luck)| Event::Up(flow, luck)),
        4 => any_flow().prop_map(Event::Down),
        3 => (any_flow(), any::<bool>()).prop_map(|(flow, held)| Event::Busy(flow, held)),
        1 => any_flow().prop_map(Event::Refused),
        2 => any::<bool>().prop_map(Event::Listener),
        2 => (0..150_u64, any::<bool>()).prop_map(|(seconds, draining)| Event::Time(seconds, draining)),
        1 => any::<bool>().prop_map(Event::AddressGone),
        1 => Just(Event::EndAll),
    ]
}

fn happen(rig: &mut Rig, event: Event) {
    match event {
        Event::Up(flow, luck) => {
            let mut luck = luck.into_iter().cycle();
            let begun = rig.relay.find(&flow).or_else(|| {
                rig.begin(flow, selected(), |_| match luck.next().unwrap() {
                    Luck::Good => Ok(()),
                    Luck::NoDescriptor => Err(lack(libc::EMFILE)),
                    Luck::NoPort => Err(SocketError::Taken { address: ([0, 0, 0, 0], 0).into() }),
                    Luck::NoWay => Err(lack(libc::ENETUNREACH)),
                })
            });
            if let Some(id) = begun {
                rig.up(id, b"x");
            }
        }
        Event::Down(flow) => {
            if let Some(id) = rig.relay.find(&flow) {
                rig.down(id, b"x", &sent(b"x"));
            }
        }
        Event::Busy(flow, held) => {
            rig.held = held;
            if let Some(id) = rig.relay.find(&flow) {
                rig.be_busy(id);
            }
        }
        Event::Refused(flow) => {
            if let Some(id) = rig.relay.find(&flow) {
                rig.down(id, b"x", &Sent { refused: true, ..sent(b"x") });
            }
        }
        Event::Listener(is_empty) => {
            rig.relay.has_read(Family::V4, 1000);
            rig.relay.take_over(Family::V4, is_empty);
            rig.carry_out();
        }
        Event::Time(seconds, draining) => {
            rig.wait(Duration::from_secs(seconds));
            rig.relay.adopt_limits(rig.now);
            rig.next_second();
            rig.sweep(draining);
        }
        Event::AddressGone(there_is_another) => {
            for stranded in rig.relay.hear(Arc::new(BTreeSet::from([HOST.into()]))) {
                let anew = rig.local([192, 0, 2, 2]);
                if there_is_another && rig.relay.is_better(stranded, Some(anew)) {
                    rig.relay.moved(stranded, Some(anew));
                } else {
                    rig.relay.stays();
                }
            }
        }
        Event::EndAll => {
            rig.relay.end_all(rig.now);
            rig.carry_out();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sessions_and_sockets_and_counts_agree(
        per_destination in any::<bool>(),
        events in prop::collection::vec(event(), 1..150),
    ) {
        let nat = if per_destination { Nat::PerDestination } else { Nat::EndpointIndependent };
        let mut rig = Rig::limited(rule(Treatment { nat, ..Action::Direct.into() }), LIMITS);
        for event in events {
            happen(&mut rig, event);
            let counted = rig.counted();
            prop_assert!(rig.live() <= LIMITS.total);
            prop_assert_eq!(counted.active(), rig.live() as u64);
            prop_assert_eq!(rig.sessions.len(), rig.live());
            prop_assert_eq!(rig.ended.len() as u64, counted.sessions - counted.active());
            let mut used = BTreeSet::new();
            for id in rig.sessions.keys().copied().collect::<Vec<_>>() {
                let (flow, _) = rig.relay.owner(id).expect("sockets of a session");
                prop_assert_eq!(rig.relay.find(&flow), Some(id));
                let has_own = rig.relay.down(id).unwrap().reply == Reply::Own;
                prop_assert_eq!(has_own, rig.sessions[&id].0);
                prop_assert_eq!(has_own, rig.read.contains(&id) || rig.relay.is_waiting(id));
                used.extend(rig.relay.mapping_of(id));
            }
            prop_assert_eq!(&used, &rig.mappings);
            prop_assert_eq!(used.is_empty(), per_destination || rig.live() == 0);
        }
        rig.relay.end_all(rig.now);
        rig.carry_out();
        prop_assert_eq!((rig.live(), rig.sessions.len(), rig.mappings.len()), (0, 0, 0));
        let of_idle = rig.ended.iter().filter(|(_, end)| *end == End::Idle).count();
        prop_assert_eq!(rig.counted().ended(End::Idle), of_idle as u64);
    }
}
