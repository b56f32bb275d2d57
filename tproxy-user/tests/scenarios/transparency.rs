//! What of a client's packets is kept on the way, of TCP. (Of UDP: `udp/transparency`.)

use std::{io::ErrorKind, net::SocketAddr, time::Instant};

use socket2::{Domain, Socket, Type};

use crate::{reload::File, support::*};

const PORT: u16 = 4_090;

/// Connects with what `prepare` sets.
pub(crate) fn connect_as(
    namespace: &Namespace,
    to: SocketAddr,
    prepare: impl Fn(&Socket) -> std::io::Result<()>,
) -> std::io::Result<std::net::TcpStream> {
    let socket = namespace.enter(|| Socket::new(Domain::for_address(to), Type::STREAM, None))?;
    prepare(&socket)?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

#[test]
fn a_syn_whose_hops_run_out_is_answered_by_the_gateway_and_others_are_taken() {
    let world = World::new();
    for engine in ENGINES {
        let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --proto tcp --steer {engine}"));
        for family in Family::ALL {
            let connect = |hops| {
                connect_as(&world.net.client, (family.public(), 80).into(), |socket| match family {
                    Family::V4 => socket.set_ttl_v4(hops),
                    Family::V6 => socket.set_unicast_hops_v6(hops),
                })
            };
            let outcome = connect(1).map_err(|error| error.kind());
            assert_eq!(outcome.err(), Some(ErrorKind::HostUnreachable), "{engine} {family:?}\n{}", *tproxy);
            connect(2).unwrap_or_else(|error| panic!("{error}\n{}", *tproxy));
        }
    }
}

#[test]
fn both_directions_have_the_class_of_the_syn_and_no_packet_another() {
    const CLASS: u32 = 0x20;
    let world = World::new();
    let filter = |namespace: &Namespace, direction: &str, matching: &str| {
        let rules =
            ["ip", "ip6"].map(|ip| format!("tcp {direction} {PORT} {matching} {ip} dscp != cs1 drop"));
        let chain = format!("type filter hook input priority 0\n{}", rules.join("\n"));
        namespace.feed("nft -f -", &format!("table inet class {{\nchain in {{\n{chain}\n}}\n}}")).unwrap();
    };
    filter(&world.net.server, "dport", "");
    // The kernel answers a SYN before anybody knows its class, as a server's does.
    filter(&world.net.client, "sport", "tcp flags & syn != syn");
    for family in Family::ALL {
        serve(&world.net.server, (family.server(), PORT), echo);
    }
    for (engine, accept) in
        ENGINES.iter().flat_map(|engine| ["at-once", "after-connect"].map(|accept| (engine, accept)))
    {
        let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --accept {accept} --steer {engine}"));
        for family in Family::ALL {
            let connection =
                connect_as(&world.net.client, (family.server(), PORT).into(), |socket| match family {
                    Family::V4 => socket.set_tos_v4(CLASS),
                    Family::V6 => socket.set_tclass_v6(CLASS),
                });
            let connection =
                connection.unwrap_or_else(|error| panic!("{engine} {accept}: {error}\n{}", *tproxy));
            assert_echo(&connection, "of a class", &*tproxy);
        }
    }
}

/// `KEEPALIVE` is a rule's own time.
const SILENT: &str = r#"
[[rules]]
name = "silent"
scope = "forwarded"
interfaces = ["lan"]
action = "direct"
[rules.timeouts]
KEEPALIVE
"#;

#[test]
fn both_sides_of_a_silent_connection_are_asked_whether_they_are_there() {
    let world = World::new();
    for family in Family::ALL {
        serve(&world.net.server, (family.server(), PORT), echo);
    }
    let ask = format!("ss -Htno state established ( sport = {PORT} or dport = {PORT} )");
    for (keepalive, longest) in [("", 60), ("keepalive = \"7s\"", 7)] {
        let file = File::new(&SILENT.replace("KEEPALIVE", keepalive));
        let tproxy = world.tproxy(&file.flags());
        for family in Family::ALL {
            let connection = connect(&world.net.client, (family.server(), PORT)).unwrap();
            assert_echo(&connection, "then silence", &*tproxy);
            // Towards the upstream only when the connection lasts.
            let begun = Instant::now();
            let timers = loop {
                let shown = world.net.gateway.run(&ask).unwrap();
                let timers: Vec<_> = shown.lines().filter_map(keepalive_of).collect();
                if timers.len() == 2 {
                    break timers;
                }
                assert!(begun.elapsed() < PATIENCE, "{keepalive} {family:?}: {shown}\n{}", *tproxy);
            };
            for left in timers {
                assert!(left <= longest, "{keepalive} {family:?}: {left}\n{}", *tproxy);
            }
        }
    }
}

/// Seconds until a socket asks its peer, as `ss` shows them: `1min`, `59sec`, `6.900ms` for 6.9 seconds.
fn keepalive_of(shown: &str) -> Option<u32> {
    let left = shown.split("timer:(keepalive,").nth(1)?.split(',').next()?;
    if left.contains("min") {
        return Some(if left == "1min" { 60 } else { u32::MAX });
    }
    let digits: String = left.chars().take_while(char::is_ascii_digit).collect();
    Some(digits.parse().unwrap_or_else(|error| panic!("{shown}: {error}")))
}
