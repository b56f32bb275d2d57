//! `tproxy send`.

use super::*;

#[test]
fn a_datagram_leaves_with_the_source_that_was_asked_for() {
    let world = World::new();
    for family in Family::ALL {
        let client = datagrams(&world.net.client, (family.client(), 9_999));
        let from = SocketAddr::new(family.public(), 8_080);
        let to = client.local_addr().unwrap();
        let ended = tproxy_output(&world.net.gateway, &format!("send --from {from} --to {to} hello"));
        assert!(ended.status.success(), "{}", ended.said);
        assert_eq!(ended.said, format!("sent from {from} to {to}"));
        assert_eq!(receive(&client).unwrap(), ("hello".to_owned(), from));
    }
}

/// An instance takes it for any program's: it has no mark.
#[test]
fn an_instance_that_takes_everything_takes_it_too() {
    let world = World::new();
    let tproxy = world.tproxy("--scope outbound --to 0.0.0.0/0 --proto udp --action drop");
    let client = datagrams(&world.net.client, (Family::V4.client(), 9_999));
    let send = |from: &str| {
        let to = client.local_addr().unwrap();
        let ended = tproxy_output(&world.net.gateway, &format!("send --from {from} --to {to} x"));
        assert!(ended.status.success(), "{}", ended.said);
    };
    send("8.8.8.8:8080");
    drop(tproxy);
    send("9.9.9.9:9090");
    assert_eq!(receive(&client).unwrap().1, "9.9.9.9:9090".parse().unwrap());
    assert_nothing(&client, &"the first was dropped");
}
