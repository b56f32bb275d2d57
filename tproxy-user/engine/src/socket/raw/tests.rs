use std::{io::ErrorKind, mem::MaybeUninit, net::UdpSocket};

use rustix::io::Errno;
use tproxy_netns::Topology;

use super::*;
use crate::socket::{
    Endpoint, Message, UpstreamSource, datagram_upstream, receive_messages,
    rig::{FAMILIES, address_of, counter, foreign, udp_socket, wait_for_datagram},
    session,
};

#[test]
fn the_sum_is_that_of_the_standard() {
    // RFC 1071, 3.
    assert_eq!(checksum([&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
    assert_eq!(checksum([&[0x00, 0x01], &[0xf2]]), !0xf201);
}

#[test]
fn a_client_receives_from_a_port_that_somebody_holds() {
    let net = Topology::three().unwrap();
    let _resolver = net.gateway.enter(|| UdpSocket::bind("[::]:53")).unwrap();
    for (family, addresses) in FAMILIES {
        let (from, client) = (OriginalDst(foreign(family, 53)), udp_socket(&net.client, addresses.client()));
        let to = ClientAddr(client.local_addr().unwrap());
        let taken = net.gateway.enter(|| session(from, to, Mark::DEFAULT));
        assert!(matches!(taken, Err(SocketError::Taken { .. })), "{taken:?}");

        let mut sender = net.gateway.enter(|| RawSender::new(family, Mark::DEFAULT)).unwrap();
        let (unfragmented, longest) = match family {
            Family::V4 => (1_472, 65_507),
            Family::V6 => (1_452, 65_527),
        };
        let mut buffer = vec![0; 65_536];
        for length in [0, 1, 2, 999, unfragmented, 4_000, 60_000, longest] {
            let payload: Vec<_> = (0..length).map(|index| (index % 251) as u8).collect();
            sender.send(from, to, TrafficClass(0), &payload).unwrap();
            let (received, source) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..received], source), (&payload[..], from.0));
        }
        let too_long = sender.send(from, to, TrafficClass(0), &vec![0; longest + 1]).unwrap_err();
        assert_eq!(Errno::from_io_error(&too_long), Some(Errno::MSGSIZE));
        let reassembled = counter(&net.client, family, "ReasmOKs");
        assert_eq!(reassembled, 3, "what does not fit the link comes in fragments");
    }
}

#[test]
fn a_sum_of_zero_is_not_taken_for_none() {
    let net = Topology::three().unwrap();
    for (family, addresses) in FAMILIES {
        let (from, client) = (OriginalDst(foreign(family, 53)), udp_socket(&net.client, addresses.client()));
        let to = ClientAddr(client.local_addr().unwrap());
        // Whatever the other words add up to, theirs and its complement are all ones, and the sum is zero then.
        let mut header = [0; UDP_HEADER];
        header[..2].copy_from_slice(&from.0.port().to_be_bytes());
        header[2..4].copy_from_slice(&to.0.port().to_be_bytes());
        header[4..6].copy_from_slice(&10_u16.to_be_bytes());
        let pseudo = pseudo_header(from.0.ip(), to.0.ip(), UDP, 10);
        let payload = checksum([&pseudo[..], &header]).to_be_bytes();
        assert_eq!(checksum([&pseudo[..], &header, &payload]), 0);

        let mut sender = net.gateway.enter(|| RawSender::new(family, Mark::DEFAULT)).unwrap();
        sender.send(from, to, TrafficClass(0), &payload).unwrap();
        let mut buffer = [0; 2];
        assert_eq!(client.recv_from(&mut buffer).unwrap(), (2, from.0));
        assert_eq!(buffer, payload);
    }
}

#[test]
fn the_class_arrives() {
    let net = Topology::three().unwrap();
    for (family, addresses) in FAMILIES {
        let any = Endpoint::Any(family);
        let client =
            net.client.enter(|| datagram_upstream(any, UpstreamSource::Host, Mark::DEFAULT)).unwrap();
        let to = ClientAddr(SocketAddr::new(addresses.client(), address_of(&client).port()));
        let mut sender = net.gateway.enter(|| RawSender::new(family, Mark::DEFAULT)).unwrap();
        for class in [0, 1, 2, 3, 0xb8, 0xff].map(TrafficClass) {
            sender.send(OriginalDst(foreign(family, 53)), to, class, b"x").unwrap();
            wait_for_datagram(&client);
            let mut messages = [Message::NOTHING];
            receive_messages(&client, &mut [0; 1], 1, &mut messages).unwrap();
            assert_eq!((messages[0].class, messages[0].from), (class, foreign(family, 53)));
        }
    }
}

#[test]
fn it_receives_nothing_of_what_the_host_does() {
    let net = Topology::three().unwrap();
    for (family, addresses) in FAMILIES {
        let sender = net.gateway.enter(|| RawSender::new(family, Mark::DEFAULT)).unwrap();
        let client = udp_socket(&net.client, addresses.client());
        let [outside, inside] =
            [addresses.lan(), family.loopback()].map(|address| udp_socket(&net.gateway, address));
        client.send_to(b"x", outside.local_addr().unwrap()).unwrap();
        inside.send_to(b"x", inside.local_addr().unwrap()).unwrap();
        for socket in [outside, inside] {
            assert_eq!(socket.recv_from(&mut [0; 1]).unwrap().0, 1);
        }
        let received = sender.0.recv(&mut [MaybeUninit::uninit(); 1]);
        assert_eq!(received.unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
