//! The library in a program of one's own: `examples/intercept.rs` and `examples/intercept_udp.rs`.

use std::{
    io::Read as _,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{support::*, udp::ask};

/// `cargo test` builds the examples, next to the binary; with `--test` it does not.
fn example(name: &str) -> std::path::PathBuf {
    let path = binary().with_file_name("examples").join(name);
    assert!(path.exists(), "build it: cargo build --package tproxy --example {name}");
    path
}

#[test]
fn a_program_takes_connections_to_arbitrary_destinations_and_leaves_the_host_as_it_was() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let before = gateway.ip("rule\nroute show table all").unwrap();
    let mut program = gateway.start(&format!("{} lan", example("intercept").display())).unwrap();
    program.wait_line(&["ready"], PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    for family in Family::ALL {
        let mut stream = connect(&world.net.client, (family.public(), 80)).unwrap();
        let (client, mut answer) = (stream.local_addr().unwrap(), String::new());
        stream.read_to_string(&mut answer).unwrap_or_else(|error| panic!("{error}\n{program}"));
        let destination = SocketAddr::new(family.public(), 80);
        assert_eq!(answer, format!("mine: {client} wanted to go to {destination}\n"), "{program}");
        // What the rule does not name goes its own way.
        world.curl(family.public(), 81).assert_nginx((family.public(), 81).into(), family.client(), &program);
    }
    program.signal(Signal::INT);
    assert!(program.wait(PATIENCE).unwrap().success(), "{program}");
    assert_eq!(gateway.ip("rule\nroute show table all").unwrap(), before, "{program}");
}

#[test]
fn a_program_takes_udp_flows_to_arbitrary_destinations_and_answers_from_there() {
    for world in [World::new(), World::l3()] {
        let gateway = &world.net.gateway;
        let before = gateway.ip("rule\nroute show table all").unwrap();
        let mut program = gateway.start(&format!("{} lan", example("intercept_udp").display())).unwrap();
        program.wait_line(&["ready"], PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        // First somebody of both families has the port, so that answers leave without a socket of the session's own.
        for held in [true, false] {
            let holder =
                held.then(|| datagrams(gateway, SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 7))));
            for family in Family::ALL {
                for address in [family.public(), family.server()] {
                    let client = datagrams(&world.net.client, (family.client(), 0));
                    let own = client.local_addr().unwrap();
                    let to = SocketAddr::new(address, 7);
                    for said in ["first", "second", "done"] {
                        let answer = ask(&client, to, said, &program);
                        assert_eq!(answer, format!("mine: {own} said {said} to {to}"), "{held}\n{program}");
                    }
                    // What comes just as a session ends is lost, what comes later begins another one.
                    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                    let mut buffer = [0; 100];
                    let began = Instant::now();
                    let again = loop {
                        client.send_to(b"again", to).unwrap();
                        match client.recv_from(&mut buffer) {
                            Ok((length, from)) => break (String::from_utf8_lossy(&buffer[..length]), from),
                            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}\n{program}"),
                        }
                    };
                    assert_eq!(
                        again,
                        (format!("mine: {own} said again to {to}").into(), to),
                        "{held}\n{program}"
                    );
                }
            }
            drop(holder);
        }
        program.signal(Signal::INT);
        assert!(program.wait(PATIENCE).unwrap().success(), "{program}");
        assert_eq!(gateway.ip("rule\nroute show table all").unwrap(), before, "{program}");
    }
}
