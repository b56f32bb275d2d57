//! A contender in a network of its own.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tproxy::config::Source;
use tproxy_netns::{Family, Namespace, Topology};

use super::{
    contender::{Contender, Skill},
    proxy::Proxy,
    server::Server,
    steering::{ECHO, Rules},
};

/// The most that plain forwarding, a proxy and a server take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// One contender, ready to be measured. Fields are dropped from top to bottom: programs before their network.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) contender: Contender,
    pub(super) proxy: Option<Proxy>,
    _server: Server,
    pub(super) net: Topology,
}

impl Lane {
    pub(super) fn open(contender: Contender, rules: Rules) -> anyhow::Result<Self> {
        let cpus = cpus();
        let net = Topology::three()?;
        for namespace in [&net.client, &net.gateway, &net.server] {
            tune(namespace)?;
        }
        let server = Server::start(&net.server, cpus)?;
        let proxy = match contender {
            Contender::Plain => None,
            Contender::Proxy(way, source) => Some(Proxy::start(way, source, rules, &net.gateway, cpus)?),
        };
        let lane = Self { contender, proxy, _server: server, net };
        lane.verify(rules).with_context(|| {
            let said = lane.proxy.as_ref().map(Proxy::lines).unwrap_or_default().join("\n");
            format!("{contender} does not do what it is there for; it wrote:\n{said}")
        })?;
        Ok(lane)
    }

    /// Where the workloads connect to: an address that is not the gateway's, on a port of the server's.
    pub(super) fn target(port: u16) -> SocketAddr {
        SocketAddr::new(Family::V4.public(), port)
    }

    /// Makes sure that what is measured is what it is said to be.
    fn verify(&self, rules: Rules) -> anyhow::Result<()> {
        let (skill, source) = match self.contender {
            Contender::Proxy(way, source) if rules != Rules::Other => (way.skill(), Some(source)),
            _ => (Skill::Both, None),
        };
        if skill != Skill::Datagrams {
            self.verify_connections(source)?;
        }
        if skill != Skill::Connections {
            self.verify_datagrams(source)?;
        }
        Ok(())
    }

    /// Whom the server sees.
    fn seen(source: Option<Source>) -> IpAddr {
        if source == Some(Source::Host) { Family::V4.wan() } else { Family::V4.client() }
    }

    /// Who has a connection, and whom the server sees.
    fn verify_connections(&self, source: Option<Source>) -> anyhow::Result<()> {
        let mut stream = self.net.client.enter(|| TcpStream::connect_timeout(&Self::target(80), PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        let mut answer = [0; 1024];
        let length = stream.read(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        let seen = Self::seen(source);
        ensure!(
            answer.ends_with(&format!("{seen}\n")),
            "the server should have seen {seen}, but answered: {answer}"
        );
        let client = stream.local_addr()?.to_string();
        let sockets = self.net.gateway.run("ss -Htn")?;
        let held = sockets.lines().any(|line| line.split_whitespace().nth(4) == Some(client.as_str()));
        ensure!(
            held == source.is_some(),
            "the gateway should {}have the connection of {client}; it has:\n{sockets}",
            if source.is_some() { "" } else { "not " }
        );
        Ok(())
    }

    /// Whom the server sees of a datagram: a proxy sends from another port. And the answer gets back.
    fn verify_datagrams(&self, source: Option<Source>) -> anyhow::Result<()> {
        let server = self.net.server.enter(|| UdpSocket::bind(Self::target(ECHO)))?;
        let client = self.net.client.enter(|| UdpSocket::bind(("0.0.0.0", 0)))?;
        client.connect(Self::target(ECHO))?;
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        client.send(b"?")?;
        let (_, from) = server.recv_from(&mut [0]).context("a datagram to the server")?;
        server.send_to(b"!", from)?;
        client.recv(&mut [0]).context("a datagram to the client")?;
        let (seen, port) = (Self::seen(source), client.local_addr()?.port());
        ensure!(
            from.ip() == seen && (from.port() == port) == source.is_none(),
            "the server should have seen {seen}{}, but it saw {from}",
            if source.is_none() { format!(" and port {port}") } else { format!(", not port {port}") }
        );
        Ok(())
    }
}

/// CPUs that this process may use: as many threads or processes has every contender.
pub(super) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Thousands of connections a second must not run out of ports.
fn tune(namespace: &Namespace) -> anyhow::Result<()> {
    for (key, value) in [
        ("net.ipv4.ip_local_port_range", "10000 65535"),
        ("net.ipv4.tcp_tw_reuse", "1"),
        ("net.ipv4.tcp_max_tw_buckets", "32768"),
        ("net.ipv4.tcp_max_syn_backlog", "8192"),
        ("net.core.somaxconn", "8192"),
    ] {
        namespace.set_sysctl(key, value)?;
    }
    Ok(())
}
