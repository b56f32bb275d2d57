//! Sockets that linger with foreign addresses.

use super::*;

/// A connection over `lo` to the address of a transparent listener; (its side, the client's side).
fn connect(to: SocketAddr, domain: Domain, mark: u32) -> (Socket, Socket) {
    let listener = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
    listener.set_ip_transparent_v4(true).unwrap();
    listener.set_mark(mark).unwrap();
    listener.bind(&to.into()).unwrap();
    listener.listen(1).unwrap();
    let client = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
    let from = match to.ip() {
        IpAddr::V4(_) => CLIENT_V4.into(),
        IpAddr::V6(addr) if addr.to_ipv4_mapped().is_some() => CLIENT_V4.to_ipv6_mapped().into(),
        IpAddr::V6(_) => IpAddr::V6(CLIENT_V6),
    };
    client.bind(&SocketAddr::new(from, 0).into()).unwrap();
    client.connect(&to.into()).unwrap();
    (listener.accept().unwrap().0, client)
}

/// The other side closes last, so ours stays in TIME_WAIT.
fn time_wait(to: SocketAddr, domain: Domain, mark: u32) {
    let (ours, mut theirs) = connect(to, domain, mark);
    drop(ours);
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
}

/// Ours is closed with data that the other side has no room for, so it stays in FIN_WAIT1 without a process.
fn orphan(to: SocketAddr, mark: u32) -> Socket {
    let (mut ours, theirs) = connect(to, Domain::for_address(to), mark);
    ours.set_nonblocking(true).unwrap();
    while ours.write(&[0; 65536]).is_ok() {}
    theirs
}

/// `STATE LOCAL` of each socket that does not listen.
fn sockets() -> Vec<String> {
    let lines = run("ss -Htan state connected");
    let fields = lines.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut sockets: Vec<_> = fields.map(|fields| format!("{} {}", fields[0], fields[3])).collect();
    sockets.sort();
    sockets
}

#[test]
fn lingering_sockets_with_foreign_addresses_and_our_mark_are_destroyed() {
    in_namespace(|| {
        run(&format!("ip addr add {CLIENT_V4}/32 dev lo"));
        add_v6_address(&format!("{CLIENT_V6}/128"), "lo");
        run("ip route add local 203.0.113.0/24 dev lo table 2222");
        run("ip rule add to 203.0.113.0/24 lookup 2222");
        run("ip -6 route add local 2001:db8::/64 dev lo table 2222");
        run("ip -6 rule add to 2001:db8::/64 lookup 2222");
        let own = IDENTITY.mark.own();
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();

        time_wait(addr("203.0.113.1:81"), Domain::IPV4, own);
        time_wait(addr("203.0.113.1:82"), Domain::IPV4, own | 1);
        time_wait(addr("[2001:db8::1]:83"), Domain::IPV6, own);
        time_wait(addr("[::ffff:203.0.113.1]:84"), Domain::IPV6, own);
        let _theirs = orphan(addr("203.0.113.1:85"), own);
        let (_live, _theirs) = connect(addr("203.0.113.1:86"), Domain::IPV4, own);

        time_wait(addr("203.0.113.1:91"), Domain::IPV4, 0);
        time_wait(addr("203.0.113.1:92"), Domain::IPV4, IDENTITY.mark.steer());
        time_wait(addr("10.9.0.1:93"), Domain::IPV4, own);
        time_wait(addr("127.0.0.1:94"), Domain::IPV4, own);

        let before = sockets();
        let ours = |socket: &String| (81..=86).any(|port| socket.ends_with(&format!(":{port}")));
        assert_eq!(before.iter().filter(|socket| ours(socket)).count(), 6, "{before:#?}");
        assert!(before.contains(&"FIN-WAIT-1 203.0.113.1:85".to_owned()), "{before:#?}");

        let local = LocalTable::load(2222).unwrap();
        assert_eq!(lingering::destroy(IDENTITY.mark, &local).unwrap(), 6, "{before:#?}");
        let after = sockets();
        assert!(!after.iter().any(ours), "{after:#?}");
        for kept in ["203.0.113.1:91", "203.0.113.1:92", "10.9.0.1:93", "127.0.0.1:94"] {
            assert!(after.contains(&format!("TIME-WAIT {kept}")), "{kept}: {after:#?}");
        }
        assert_eq!(lingering::destroy(IDENTITY.mark, &local).unwrap(), 0);
    });
}
