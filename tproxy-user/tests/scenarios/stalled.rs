//! Workers that do not go round any more: what they would serve meets what `on_exit` says, and so in both families, protocols
//! and directions.

use std::{
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rustix::process::Signal;

use crate::support::*;

/// What a client is told that asks for a connection.
fn outcome(world: &World, family: Family) -> Result<String, io::ErrorKind> {
    let second = Duration::from_secs(1);
    connect_within(&world.net.client, (family.server(), 80), second).map_err(|error| error.kind())?;
    // What was taken before it was noticed hangs.
    Ok(curl(&world.net.client, "-m 2", family.server(), 80).body)
}

#[test]
fn what_a_stopped_process_would_serve_passes_or_is_refused_and_is_served_again_when_it_goes_on() {
    let rows = ENGINES.into_iter().flat_map(|engine| ["pass", "reject"].map(|on_exit| (engine, on_exit)));
    each_at_once(rows, |(engine, on_exit)| {
        let world = World::new();
        let run = format!("{FORWARDED} --port 80 --action direct --steer {engine} --on-exit {on_exit}");
        let tproxy = world.tproxy(&run);
        let saw = |family: Family, whom: IpAddr| {
            let server = SocketAddr::new(family.server(), 80);
            let told = format!("server {}:{} saw {whom}:", server.ip(), server.port());
            outcome(&world, family).is_ok_and(|body| body.starts_with(&told))
        };
        for family in Family::ALL {
            assert!(saw(family, family.wan()), "{}", *tproxy);
        }
        tproxy.signal(Signal::STOP);
        for family in Family::ALL {
            eventually(&*tproxy, || match on_exit {
                "pass" => saw(family, family.client()),
                _ => outcome(&world, family) == Err(io::ErrorKind::ConnectionRefused),
            });
        }
        tproxy.signal(Signal::CONT);
        for family in Family::ALL {
            eventually(&*tproxy, || saw(family, family.wan()));
        }
    });
}

#[test]
fn datagrams_and_connections_to_this_host_alike() {
    let world = World::new();
    let (gateway, client) = (&world.net.gateway, &world.net.client);
    let tproxy = world.tproxy("--scope inbound --port 80,7777 --action respond=taken");
    for family in Family::ALL {
        serve(gateway, (family.lan(), 80), |mut stream| {
            stream.write_all(b"of the application").unwrap();
        });
        let told = || {
            let stream = connect(client, (family.lan(), 80)).inspect(|stream| {
                stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            });
            stream.and_then(io::read_to_string).unwrap_or_default()
        };
        let application = datagrams(gateway, (family.lan(), 7777));
        let asked = || {
            let socket = datagrams(client, (family.client(), 0));
            socket.send_to(b"?", (family.lan(), 7777)).unwrap();
        };
        let is_asked = || {
            application.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            asked();
            application.recv_from(&mut [0; 8]).is_ok()
        };
        assert_eq!(told(), "taken\n", "{}", *tproxy);
        assert!(!is_asked(), "{}", *tproxy);
        tproxy.signal(Signal::STOP);
        eventually(&*tproxy, || told() == "of the application");
        eventually(&*tproxy, is_asked);
        tproxy.signal(Signal::CONT);
        eventually(&*tproxy, || told() == "taken\n");
        eventually(&*tproxy, || !is_asked());
    }
}
