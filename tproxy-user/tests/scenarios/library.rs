//! The library in a program of one's own: `examples/intercept.rs`.

use std::io::Read as _;

use rustix::process::Signal;

use crate::support::*;

/// `cargo test` builds the examples, next to the binary; with `--test` it does not.
fn example() -> std::path::PathBuf {
    let path = binary().with_file_name("examples").join("intercept");
    assert!(path.exists(), "build it: cargo build --package tproxy --example intercept");
    path
}

#[test]
fn a_program_takes_connections_to_arbitrary_destinations_and_leaves_the_host_as_it_was() {
    let world = World::new();
    let gateway = &world.net.gateway;
    let before = gateway.ip("rule\nroute show table all").unwrap();
    let mut program = gateway.start(&format!("{} lan", example().display())).unwrap();
    program.wait_line(&["ready"], PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    for family in Family::ALL {
        let mut stream = connect(&world.net.client, (family.public(), 80)).unwrap();
        let (client, mut answer) = (stream.local_addr().unwrap(), String::new());
        stream.read_to_string(&mut answer).unwrap_or_else(|error| panic!("{error}\n{program}"));
        let destination = std::net::SocketAddr::new(family.public(), 80);
        assert_eq!(answer, format!("mine: {client} wanted to go to {destination}\n"), "{program}");
        // What the rule does not name goes its own way.
        world.curl(family.public(), 81).assert_nginx((family.public(), 81).into(), family.client(), &program);
    }
    program.signal(Signal::INT);
    assert!(program.wait(PATIENCE).unwrap().success(), "{program}");
    assert_eq!(gateway.ip("rule\nroute show table all").unwrap(), before, "{program}");
}
