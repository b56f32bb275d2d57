//! The first datagrams of a flow, which come before its session has a socket.

use super::*;

/// As many as a listener's buffer surely holds.
const BURST: usize = 100;

#[test]
fn a_burst_that_begins_a_flow_arrives_whole_and_in_order() {
    let world = World::new();
    for (engine, source) in ENGINES.iter().flat_map(|engine| [(engine, "host"), (engine, "client-port")]) {
        let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --source {source} --steer {engine}"));
        for family in Family::ALL {
            for flow in 0..20 {
                let server = datagrams(&world.net.server, (family.server(), 0));
                let client = datagrams(&world.net.client, (family.client(), 0));
                client.connect(server.local_addr().unwrap()).unwrap();
                for index in 0..BURST {
                    client.send(format!("{index}").as_bytes()).unwrap();
                }
                for index in 0..BURST {
                    let (text, peer) = receive(&server).unwrap_or_else(|error| {
                        panic!("{engine} {source} flow {flow} at {index}: {error}\n{}", *tproxy)
                    });
                    assert_eq!(text, format!("{index}"), "{engine} {source} flow {flow}\n{}", *tproxy);
                    server.send_to(text.as_bytes(), peer).unwrap();
                }
                for index in 0..BURST {
                    let (text, _) = receive(&client).unwrap_or_else(|error| {
                        panic!("{engine} {source} flow {flow} back at {index}: {error}\n{}", *tproxy)
                    });
                    assert_eq!(text, format!("{index}"), "{engine} {source} flow {flow}\n{}", *tproxy);
                }
            }
        }
    }
}
