//! A gateway with one arm: clients, gateway and the router behind it are on one link, and the kernel tells clients of passed
//! packets to send to the router themselves.

use std::{
    net::{IpAddr, UdpSocket},
    time::Instant,
};

use socket2::SockRef;

use crate::support::*;

/// An address that only the router knows a way to.
fn far(family: Family) -> IpAddr {
    let address = if family == Family::V4 { "192.0.2.7" } else { "2001:db8::7" };
    address.parse().expect("an address")
}

/// What the kernel gave a namespace on the link: the address that it sends redirects of IPv6 from, and clients heed only those of
/// the very address that they have for their router.
fn link_local(namespace: &Namespace) -> String {
    let begun = Instant::now();
    loop {
        let shown = namespace.run("ip -6 -o addr show dev eth0 scope link -tentative").unwrap();
        let mut words = shown.split_whitespace().skip_while(|word| *word != "inet6");
        if let Some((address, _)) = words.nth(1).and_then(|word| word.split_once('/')) {
            return address.to_owned();
        }
        assert!(begun.elapsed() < PATIENCE, "no address of the link: {shown}");
    }
}

struct OneArm {
    /// The router's addresses on the link, by family.
    hops: [String; 2],
    client: Namespace,
    gateway: Namespace,
    router: Namespace,
    _switch: Namespace,
}

impl OneArm {
    fn new() -> Self {
        let [switch, client, gateway, router] =
            ["switch", "client", "gw", "router"].map(|role| Namespace::new(role).unwrap());
        switch.ip("link add sw type bridge\nlink set sw up").unwrap();
        for (number, namespace) in [(2, &client), (3, &gateway), (1, &router)] {
            switch.join(&format!("port{number}"), namespace, "eth0").unwrap();
            switch.ip(&format!("link set port{number} master sw")).unwrap();
            namespace
                .ip(&format!(
                    "addr add 10.5.0.{number}/24 dev eth0\naddr add fd00:5::{number}/64 dev eth0 nodad"
                ))
                .unwrap();
        }
        for namespace in [&gateway, &router] {
            namespace.set_sysctl("net.ipv4.ip_forward", "1").unwrap();
            namespace.set_sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
        }
        client.set_sysctl("net.ipv6.conf.eth0.accept_redirects", "1").unwrap();
        for (namespace, number, next) in [(&client, 3, &gateway), (&gateway, 1, &router)] {
            namespace.ip(&format!("route add default via 10.5.0.{number}")).unwrap();
            let hop = link_local(next);
            namespace.run(&format!("ip -6 route add default via {hop} dev eth0")).unwrap();
        }
        for family in Family::ALL {
            router.ip(&format!("addr add {} dev lo", far(family))).unwrap();
        }
        let hops = ["10.5.0.1".to_owned(), link_local(&router)];
        Self { hops, client, gateway, router, _switch: switch }
    }

    /// By which way the client sends there.
    fn way(&self, family: Family) -> String {
        self.client.run(&format!("ip route get {}", far(family))).unwrap()
    }

    /// Has something pass, until somebody has received it.
    fn pass(&self, there: &UdpSocket) {
        let to = there.local_addr().unwrap();
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let client = datagrams(&self.client, (any, 0));
        // An IPv6 socket that is not bound to the link heeds none (`ip6_sk_redirect()`).
        SockRef::from(&client).bind_device(Some(b"eth0")).unwrap();
        client.send_to(b"x", to).unwrap();
        there.recv_from(&mut [0; 8]).unwrap();
    }
}

#[test]
fn what_passes_does_not_lead_clients_past_the_rules() {
    for family in Family::ALL {
        for protocol in ["tcp", "both"] {
            let world = OneArm::new();
            let rule = "--scope forwarded --interface eth0 --to 0.0.0.0/0 --to ::/0 --except 10.5.0.0/24 --except fd00:5::/64";
            let mut tproxy = tproxy_in(
                &world.gateway,
                &format!("{rule} --port 80 --proto {protocol} --action respond=taken"),
            );
            let taken =
                |tproxy: &Tproxy| curl(&world.client, "", far(family), 80).assert_body("taken", &**tproxy);
            let there = datagrams(&world.router, (far(family), 7000));
            taken(&tproxy);
            world.pass(&there);
            taken(&tproxy);
            assert!(counted_at_the_end(&mut tproxy, "drop_redirect") > 0, "{}", *tproxy);
            // Without us the kernel says so, and the client heeds it.
            let begun = Instant::now();
            let direct = format!("via {} ", world.hops[usize::from(family == Family::V6)]);
            while !world.way(family).contains(&direct) {
                assert!(begun.elapsed() < PATIENCE, "{}", world.way(family));
                world.pass(&there);
            }
        }
    }
}
