use std::net::UdpSocket;

use super::*;
use crate::{
    family::Family,
    mark::Mark,
    socket::{datagram_listener, rig::address_of, set_ttl},
};

#[test]
fn a_listener_tells_who_sent_a_datagram_and_where_it_was_to_go() {
    for family in Family::BOTH {
        let listener = datagram_listener(family, Mark::DEFAULT).unwrap();
        let client = UdpSocket::bind((family.loopback(), 0)).unwrap();
        set_ttl(&client, family, 7).unwrap();
        client.send_to(b"one", address_of(&listener)).unwrap();
        client.send_to(b"", address_of(&listener)).unwrap();
        let socket = socket2::SockRef::from(&client);
        match family {
            Family::V4 => socket.set_tos_v4(0xb9).unwrap(),
            Family::V6 => socket.set_tclass_v6(0xb9).unwrap(),
        }
        client.send_to(&[9; 60_000], address_of(&listener)).unwrap();

        let mut seen = Vec::new();
        let mut receiver = DatagramReceiver::default();
        let mut receive = || {
            receiver.recv(&listener, |datagram| {
                assert_eq!(datagram.client.0, client.local_addr().unwrap());
                assert_eq!((datagram.dst.0, datagram.ttl), (address_of(&listener), 7));
                seen.push((datagram.class, datagram.payload.to_vec()));
            })
        };
        assert_eq!((receive().unwrap(), receive().unwrap()), (3, 0));
        let sent = [
            (TrafficClass(0), b"one".to_vec()),
            (TrafficClass(0), vec![]),
            (TrafficClass(0xb9), vec![9; 60_000]),
        ];
        assert_eq!(seen, sent);
    }
}
