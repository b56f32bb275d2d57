//! What is read of the host: local addresses, routes, links.

use super::*;

#[test]
fn the_local_table_is_what_the_host_takes_for_itself() {
    in_namespace(|| {
        run("ip link add lan0 type veth peer name lan1");
        run("ip addr add 192.0.2.1/24 dev lan0");
        run("ip link set lan0 up");
        run("ip link set lan1 up");
        add_v6_address("2001:db8::1/64", "lan0");
        run("ip route add multicast 239.1.0.0/16 dev lan0 table local");
        run("ip route add local 198.51.100.0/24 dev lo table 100");
        run("ip route add local default dev lo table 101");
        run("ip route add local 203.0.113.0/24 dev lo table 2222");
        let local = LocalTable::load(2222).unwrap();
        let own =
            ["192.0.2.1", "192.0.2.255", "127.9.9.9", "198.51.100.7", "2001:db8::1", "::1", "239.1.2.3"];
        for addr in own {
            assert!(local.contains(addr.parse().unwrap()), "{addr}: {local:?}");
        }
        for addr in ["192.0.2.2", "8.8.8.8", "203.0.113.1", "2001:db8::2", "2001:4860::8888"] {
            assert!(!local.contains(addr.parse().unwrap()), "{addr}: {local:?}");
        }
        assert_eq!(local.prefixes().collect::<LocalTable>(), local);
    });
}

#[test]
fn routed_interfaces_lead_somewhere() {
    in_namespace(|| {
        for name in ["wan", "lan", "idle"] {
            run(&format!("ip link add {name}0 type veth peer name {name}1"));
            run(&format!("ip link set {name}0 up"));
            run(&format!("ip link set {name}1 up"));
        }
        run("ip route add default dev wan0");
        run("ip -6 route add 2001:db8:1::/64 dev lan0");
        let links = links::snapshot().unwrap();
        let index = |name| links.iter().find(|link| link.name == name).unwrap().index;
        assert_eq!(routed_interfaces().unwrap(), [index("wan0"), index("lan0")].into());
    });
}

#[test]
fn links_are_told_apart_and_their_changes_reported() {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut monitor = Monitor::new().unwrap();
            run("ip link add eth7 type veth peer name eth8");
            run("ip tuntap add dev tun7 mode tun");
            assert!(monitor.next().await.unwrap().links);
            let links = links::snapshot().unwrap();
            let layer = |name| links.iter().find(|link| link.name == name).map(|link| (link.layer, link.up));
            assert_eq!(layer("lo"), Some((Layer::Loopback, true)));
            assert_eq!(layer("eth7"), Some((Layer::Ethernet, false)));
            assert_eq!(layer("tun7"), Some((Layer::Ip, false)));

            run("ip addr add 192.0.2.9/32 dev lo");
            while !monitor.next().await.unwrap().local_table {}
            run("ip route add 198.51.100.0/24 dev lo");
            while !monitor.next().await.unwrap().routes {}
            let idle = tokio::time::timeout(Duration::from_millis(50), monitor.next()).await;
            assert!(idle.is_err(), "nothing happened, and yet {idle:?}");
        });
    });
}
