//! The test network itself: what the other scenarios stand on.

use std::process::Command;

use crate::support::*;

#[test]
fn client_reaches_the_server_and_the_public_addresses_through_the_gateway() {
    for world in [World::new(), World::l3()] {
        for family in Family::ALL {
            for address in [family.server(), family.public()] {
                world.curl(address, 80).assert_nginx((address, 80).into(), family.client(), &"plain");
            }
            world.nginx.wait_access(&[&family.public().to_string(), &family.client().to_string()]).unwrap();
        }
        assert_eq!(retransmitted(&world.net.client), 0, "a link was not up yet");
    }
}

#[test]
fn namespaces_vanish_with_their_guard_even_when_a_panic_unwinds() {
    let namespace = Namespace::new("gone").unwrap();
    let name = namespace.name().to_owned();
    assert!(namespace.path().exists());
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _owned = namespace;
        panic!("on purpose");
    }));
    assert!(caught.is_err());
    let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&listed.stdout).contains(&name));
}

#[test]
fn a_process_can_be_waited_for_and_says_what_it_wrote() {
    let namespace = Namespace::new("proc").unwrap();
    let mut command = namespace.command("sh");
    command.args(["-c", "echo one; echo two >&2; read never"]);
    let mut proc = Proc::start(command).unwrap();
    assert_eq!(proc.wait_line(&["tw", "o"], PATIENCE).unwrap(), "two");
    assert!(proc.wait(PATIENCE).unwrap().code().is_some());
    let error = proc.wait_line(&["three"], PATIENCE).unwrap_err().to_string();
    assert!(error.contains("three") && error.contains("one"), "{error}");
    let error = namespace.run("no-such-program -x").unwrap_err().to_string();
    assert!(error.contains("'no-such-program' is missing"), "{error}");
    let error = namespace.ip("link show nothing").unwrap_err().to_string();
    assert!(error.contains("nothing"), "{error}");
}

#[test]
fn the_narrow_network_carries_what_fits() {
    let world = Topology::narrow(1_280).unwrap();
    for family in Family::ALL {
        serve(&world.server, (family.server(), 7), echo);
        let stream = connect(&world.client, (family.server(), 7)).unwrap();
        assert_echo(&stream, &"x".repeat(20_000), &"narrow");
    }
}
