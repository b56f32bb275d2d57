//! Which endpoint servers see, and who may use it, as STUN finds out (RFC 5780, 4).

use super::*;

const DATAGRAMS: &str =
    "--scope forwarded --interface lan --to 0.0.0.0/0 --to ::/0 --proto udp --action direct";

/// What four servers, on two addresses and two ports, see of one client.
#[track_caller]
fn seen(client: &UdpSocket, family: Family, context: &dyn std::fmt::Display) -> Vec<SocketAddr> {
    let servers =
        [family.server(), family.public()].map(|address| [3_478, 3_479].map(|port| (address, port)));
    let ask = |server: (_, u16)| ask(client, server.into(), "binding", context);
    servers
        .concat()
        .into_iter()
        .map(|server| ask(server).split(' ').next().unwrap().parse().unwrap())
        .collect()
}

fn stun(world: &World) {
    reflecting(world, 3_478);
    reflecting(world, 3_479);
}

#[test]
fn endpoint_independent_is_one_endpoint_that_anybody_can_send_to() {
    let world = World::new();
    stun(&world);
    for (engine, source) in ENGINES.iter().flat_map(|e| ["host", "client", "client-port"].map(|s| (e, s))) {
        let mut tproxy = world.tproxy(&format!("{DATAGRAMS} --source {source} --steer {engine}"));
        for family in Family::ALL {
            let client = datagrams(&world.net.client, (family.client(), 0));
            let own = client.local_addr().unwrap();
            let mapped = seen(&client, family, &*tproxy);
            assert!(mapped.iter().all(|endpoint| *endpoint == mapped[0]), "{engine} {source}: {mapped:?}");
            match source {
                "host" => assert_eq!(mapped[0].ip(), family.wan()),
                "client" => assert_eq!(mapped[0].ip(), own.ip()),
                _ => assert_eq!(mapped[0], own),
            }
            // A peer that the client has never sent to reaches it, from its own address; and is answered.
            let peer = datagrams(&world.net.server, (family.public(), 0));
            peer.send_to(b"hello from afar", mapped[0]).unwrap();
            let (text, from) = receive(&client).unwrap_or_else(|error| panic!("{error}\n{}", *tproxy));
            assert_eq!(
                (text.as_str(), from),
                ("hello from afar", peer.local_addr().unwrap()),
                "{engine} {source}"
            );
            client.send_to(b"hello yourself", from).unwrap();
            assert_eq!(receive(&peer).unwrap(), ("hello yourself".into(), mapped[0]), "{engine} {source}");
        }
        assert!(counted_at_the_end(&mut tproxy, "unsolicited") >= 1, "{}", *tproxy);
    }
}

/// TFTP: the server answers from another port than it was asked at.
#[test]
fn what_a_client_answers_to_a_stranger_leaves_by_the_same_endpoint_whatever_the_rules_ports() {
    const ASKED: u16 = 6_969;
    let world = World::new();
    reflecting(&world, ASKED);
    for (engine, source) in ENGINES.iter().flat_map(|e| ["host", "client"].map(|s| (e, s))) {
        let tproxy = world.tproxy(&format!("{DATAGRAMS} --port {ASKED} --source {source} --steer {engine}"));
        for family in Family::ALL {
            let client = datagrams(&world.net.client, (family.client(), 0));
            let seen = ask(&client, (family.public(), ASKED).into(), "read", &*tproxy);
            let mapped: SocketAddr = seen.split(' ').next().unwrap().parse().unwrap();
            let transfer = datagrams(&world.net.server, (family.public(), 0));
            for text in ["block 1", "block 2"] {
                transfer.send_to(text.as_bytes(), mapped).unwrap();
                let (block, from) = receive(&client).unwrap_or_else(|error| panic!("{error}\n{}", *tproxy));
                assert_eq!((block.as_str(), from), (text, transfer.local_addr().unwrap()), "{}", *tproxy);
                client.send_to(b"ack", from).unwrap();
                assert_eq!(
                    receive(&transfer).unwrap(),
                    ("ack".into(), mapped),
                    "{engine} {source}\n{}",
                    *tproxy
                );
            }
        }
    }
}

/// RFC 4787, REQ-9: a client that sends to another as the world sees it is itself shown so.
#[test]
fn clients_see_each_other_as_the_world_sees_them() {
    let world = World::new();
    stun(&world);
    for engine in ENGINES {
        let tproxy = world.tproxy(&format!("{DATAGRAMS} --steer {engine}"));
        for family in Family::ALL {
            let clients = [(); 2].map(|()| datagrams(&world.net.client, (family.client(), 0)));
            let [one, two] = [&clients[0], &clients[1]].map(|client| seen(client, family, &*tproxy)[0]);
            for text in ["hello", "hello again"] {
                clients[0].send_to(text.as_bytes(), two).unwrap();
                assert_eq!(receive(&clients[1]).unwrap(), (text.into(), one), "{engine}\n{}", *tproxy);
                clients[1].send_to(b"hello yourself", one).unwrap();
                let answer = receive(&clients[0]).unwrap();
                assert_eq!(answer, ("hello yourself".into(), two), "{engine}\n{}", *tproxy);
            }
        }
    }
}

#[test]
fn per_destination_is_an_endpoint_each_that_nobody_else_can_send_to() {
    let world = World::new();
    stun(&world);
    for engine in ENGINES {
        let tproxy = world.tproxy(&format!("{DATAGRAMS} --nat per-destination --steer {engine}"));
        for family in Family::ALL {
            let client = datagrams(&world.net.client, (family.client(), 0));
            let mut mapped = seen(&client, family, &*tproxy);
            let again = seen(&client, family, &*tproxy);
            assert_eq!(mapped, again, "{engine}: a session keeps its endpoint");
            let peer = datagrams(&world.net.server, (family.public(), 0));
            peer.send_to(b"hello from afar", mapped[0]).unwrap();
            ask(&client, (family.server(), 3_478).into(), "still only this", &*tproxy);
            assert_nothing(&client, &*tproxy);
            mapped.sort();
            mapped.dedup();
            assert_eq!(mapped.len(), 4, "{engine}: {mapped:?}");
        }
    }
}

/// Nothing is sent to a client that has not sent to us: its own sessions are all there is to send by.
#[test]
fn an_endpoint_is_gone_with_its_last_session() {
    let world = World::new();
    stun(&world);
    let tproxy = world.tproxy(&format!("{DATAGRAMS} --udp-timeout 1s --udp-stream-timeout 1s"));
    for family in Family::ALL {
        let client = datagrams(&world.net.client, (family.client(), 0));
        let to = SocketAddr::new(family.server(), 3_478);
        let endpoint = ask(&client, to, "binding", &*tproxy).split(' ').next().unwrap().to_owned();
        tproxy.wait_line(&[&client.local_addr().unwrap().to_string(), "end=idle"], PATIENCE).unwrap();
        let peer = datagrams(&world.net.server, (family.public(), 0));
        peer.connect(endpoint.parse::<SocketAddr>().unwrap()).unwrap();
        peer.send(b"too late").unwrap();
        assert_eq!(peer.recv(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_nothing(&client, &*tproxy);
    }
}
