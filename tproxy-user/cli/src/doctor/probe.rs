//! Real flows through a real instance, in namespaces made for it: client – gateway – server.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use tproxy_common::flow::Protocol;
use tproxy_netns::{Family, Namespace, Topology, Tproxy};

use super::Finding;

const CHECK: &str = "probe";
const PATIENCE: Duration = Duration::from_secs(5);
/// Of the echo servers; any that is free in a namespace of our own.
const PORT: u16 = 7;
const RULE: &str = "--scope forwarded --interface lan --action direct --workers 1";

pub(super) fn examine() -> Vec<Finding> {
    match set_up() {
        Ok((net, _tproxy)) => Family::ALL
            .into_iter()
            .flat_map(|family| [Protocol::Tcp, Protocol::Udp].map(|protocol| probe(&net, family, protocol)))
            .collect(),
        Err(error) => vec![Finding::fail(
            CHECK,
            error.to_string(),
            "nothing could be sent through",
            "see to what the line above names, and probe again",
        )],
    }
}

/// The instance first, so that it ends before the namespaces do.
fn set_up() -> Result<(Topology, Tproxy), tproxy_netns::Error> {
    let binary = std::env::current_exe()
        .map_err(|source| tproxy_netns::Error::Io { what: "the path of this program".into(), source })?;
    let net = Topology::three()?;
    for family in Family::ALL {
        serve(&net.server, family.public())
            .map_err(|source| tproxy_netns::Error::Io { what: "the server of the probe".into(), source })?;
    }
    let tproxy = Tproxy::start(&net.gateway, &binary, RULE)?;
    Ok((net, tproxy))
}

/// Says whom it saw, to one TCP client and one UDP client.
fn serve(server: &Namespace, address: IpAddr) -> io::Result<()> {
    let (listener, socket) = server.enter(|| {
        Ok::<_, io::Error>((TcpListener::bind((address, PORT))?, UdpSocket::bind((address, PORT))?))
    })?;
    thread::spawn(move || {
        let (mut stream, peer) = listener.accept()?;
        stream.write_all(peer.ip().to_string().as_bytes())
    });
    thread::spawn(move || {
        let (_, peer) = socket.recv_from(&mut [0])?;
        socket.send_to(peer.ip().to_string().as_bytes(), peer)
    });
    Ok(())
}

fn probe(net: &Topology, family: Family, protocol: Protocol) -> Finding {
    let name = match (protocol, family) {
        (Protocol::Tcp, Family::V4) => "TCP over IPv4",
        (Protocol::Tcp, Family::V6) => "TCP over IPv6",
        (Protocol::Udp, Family::V4) => "UDP over IPv4",
        (Protocol::Udp, Family::V6) => "UDP over IPv6",
    };
    let began = Instant::now();
    let cure =
        "tproxy trace beside it shows what was decided; report it with the output of tproxy doctor --json";
    let fail = |found: String| Finding::fail(CHECK, found, format!("interception of {name}"), cure);
    match net.client.enter(|| ask(protocol, SocketAddr::new(family.public(), PORT))) {
        Ok(saw) if saw == family.wan().to_string() => {
            Finding::ok(CHECK, format!("{name}: intercepted and relayed in {:.1?}", began.elapsed()))
        }
        Ok(saw) => fail(format!("{name}: it arrived, but was not intercepted (the server saw {saw})")),
        Err(error) => fail(format!("{name}: {error}")),
    }
}

/// Whom the server saw.
fn ask(protocol: Protocol, server: SocketAddr) -> io::Result<String> {
    let mut answer = String::new();
    match protocol {
        Protocol::Tcp => {
            let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.read_to_string(&mut answer)?;
        }
        Protocol::Udp => {
            let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(server)?;
            socket.send(b"?")?;
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer)?;
            answer.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }
    Ok(answer)
}
