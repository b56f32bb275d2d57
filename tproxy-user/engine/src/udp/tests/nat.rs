//! Which endpoint servers see, and who reaches the client by it.

use std::{
    io::IoSliceMut,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use tproxy_netns::Family;

use super::rig::*;
use crate::config::{Action, Nat, Source, Treatment};

fn ask(client: &UdpSocket, server: &UdpSocket) -> SocketAddr {
    client.send_to(b"ping", server.local_addr().unwrap()).unwrap();
    let (_, from) = receive(server, &mut [0; 10]);
    from
}

/// What arrives, and from whom.
fn told(client: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 100];
    let (length, from) = receive(client, &mut buffer);
    (buffer[..length].to_vec(), from)
}

#[test]
fn all_peers_see_the_same_endpoint_and_may_use_it() {
    let rig = Rig::new(rule(Action::Direct));
    for family in Family::ALL {
        let servers = [(family.public(), PORT), (family.server(), PORT), (family.server(), PORT + 1)];
        let [one, other, third] = servers.map(|(address, port)| rig.server(address, port));
        let client = rig.client(family);
        let seen = ask(&client, &one);
        assert_eq!(ask(&client, &other), seen);
        one.send_to(b"one", seen).unwrap();
        assert_eq!(told(&client), (b"one".to_vec(), one.local_addr().unwrap()));
        other.send_to(b"other", seen).unwrap();
        assert_eq!(told(&client), (b"other".to_vec(), other.local_addr().unwrap()));
        third.send_to(b"unsolicited", seen).unwrap();
        assert_eq!(told(&client), (b"unsolicited".to_vec(), third.local_addr().unwrap()));
        // From now on it is a session like others.
        assert_eq!(ask(&client, &third), seen);
        // Another endpoint of the client is another one here, too.
        assert_ne!(ask(&rig.client(family), &one), seen);
    }
    let counted = rig.stop();
    assert_eq!((counted.sessions, counted.unsolicited), (8, 2), "{counted}");
}

#[test]
fn each_destination_sees_an_endpoint_of_its_own_that_nobody_else_can_use() {
    let rig = Rig::new(rule(Treatment { nat: Nat::PerDestination, ..Action::Direct.into() }));
    for family in Family::ALL {
        let servers = [(family.public(), PORT), (family.server(), PORT)];
        let [one, other] = servers.map(|(address, port)| rig.server(address, port));
        let client = rig.client(family);
        let seen = ask(&client, &one);
        assert_ne!(ask(&client, &other), seen);
        other.send_to(b"unsolicited", seen).unwrap();
        assert_silent(&client);
        one.send_to(b"one", seen).unwrap();
        assert_eq!(told(&client), (b"one".to_vec(), one.local_addr().unwrap()));
    }
}

#[test]
fn servers_may_see_the_clients_address_or_its_very_endpoint() {
    for nat in [Nat::EndpointIndependent, Nat::PerDestination] {
        for source in [Source::Client, Source::ClientPort] {
            let rig = Rig::new(rule(Treatment { nat, source, ..Action::Direct.into() }));
            for family in Family::ALL {
                let (client, server) = rig.pair(family);
                for _ in 0..2 {
                    let seen = exchange(&client, &server);
                    let own = client.local_addr().unwrap();
                    assert_eq!(seen.ip(), own.ip());
                    assert_eq!(seen == own, source == Source::ClientPort);
                }
            }
            assert_eq!(rig.stop().source_fallbacks, 0);
        }
    }
}

#[test]
fn a_client_port_that_is_taken_is_replaced_and_counted() {
    let rig = Rig::new(rule(Treatment { source: Source::ClientPort, ..Action::Direct.into() }));
    let (client, server) = rig.pair(Family::V4);
    let own = client.local_addr().unwrap();
    rig.net.gateway.run("sysctl -w net.ipv4.ip_nonlocal_bind=1").unwrap();
    let _holder = rig.net.gateway.enter(|| UdpSocket::bind(own)).unwrap();
    let seen = exchange(&client, &server);
    assert_eq!(seen.ip(), own.ip());
    assert_ne!(seen, own);
    assert_eq!(rig.stop().source_fallbacks, 1);
}

/// The TTL or hop limit of what arrives next.
fn ttl(socket: &UdpSocket) -> i32 {
    let (mut buffer, mut control) = ([0; 10], nix::cmsg_space!(i32, i32));
    let mut buffers = [IoSliceMut::new(&mut buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut buffers, Some(&mut control), MsgFlags::empty())
            .unwrap();
    let found = message.cmsgs().unwrap().find_map(|control| match control {
        ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => Some(ttl),
        _ => None,
    });
    found.unwrap()
}

/// As many routers see it as without us.
#[test]
fn a_datagram_lives_as_long_as_the_client_wanted() {
    let rig = Rig::new(rule(Action::Direct));
    for family in Family::ALL {
        let server = rig.server(family.public(), PORT);
        match family {
            Family::V4 => setsockopt(&server, sockopt::Ipv4RecvTtl, &true).unwrap(),
            Family::V6 => setsockopt(&server, sockopt::Ipv6RecvHopLimit, &true).unwrap(),
        }
        for hops in [17, 5] {
            let client = rig.client_of(server.local_addr().unwrap());
            let socket = socket2::SockRef::from(&client);
            match family {
                Family::V4 => socket.set_ttl_v4(hops).unwrap(),
                Family::V6 => socket.set_unicast_hops_v6(hops).unwrap(),
            }
            client.send(b"x").unwrap();
            assert_eq!(ttl(&server), hops as i32 - 1);
        }
    }
}
