//! client – gateway – server.

use std::{
    fs,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{Error, Namespace, PATIENCE, Proc, random_suffix, require_tool};

/// One of the two address families, with the addresses that [`Topology`] gives out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    const fn pick(self, v4: &'static str, v6: &'static str) -> &'static str {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }

    /// The client, on its `eth0`.
    #[must_use]
    pub fn client(self) -> IpAddr {
        parse(self.pick("10.1.0.2", "fd00:1::2"))
    }

    /// The gateway, on its interface `lan` towards the client.
    #[must_use]
    pub fn lan(self) -> IpAddr {
        parse(self.pick("10.1.0.1", "fd00:1::1"))
    }

    /// The gateway, on its interface `wan` towards the server.
    #[must_use]
    pub fn wan(self) -> IpAddr {
        parse(self.pick("10.2.0.1", "fd00:2::1"))
    }

    /// The server, on its `eth0`.
    #[must_use]
    pub fn server(self) -> IpAddr {
        parse(self.pick("10.2.0.2", "fd00:2::2"))
    }

    /// A well-known public address, which the server also answers for.
    #[must_use]
    pub fn public(self) -> IpAddr {
        parse(self.pick("8.8.8.8", "2001:4860:4860::8888"))
    }

    /// All addresses of a host.
    #[must_use]
    pub fn unspecified(self) -> IpAddr {
        parse(self.pick("0.0.0.0", "::"))
    }
}

fn parse(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| unreachable!("{text}: {error}"))
}

/// Three namespaces in a row, IPv4 and IPv6 ([`Family`] has the addresses); the one in the middle forwards.
#[derive(Debug)]
pub struct Topology {
    /// Wires of the L3 variant; they end before the namespaces do.
    wires: Vec<Proc>,
    /// Its default route is the gateway.
    pub client: Namespace,
    /// Interfaces `lan` (towards the client) and `wan` (towards the server, its default route).
    pub gateway: Namespace,
    /// Answers for its own and for the public addresses.
    pub server: Namespace,
    /// Between client and gateway, and between gateway and server; in the narrow variant only.
    pub routers: Vec<Namespace>,
}

impl Topology {
    /// client `eth0` – `lan` gateway `wan` – `eth0` server, over veth.
    ///
    /// # Errors
    /// Whatever stops the set-up; nothing is left behind.
    pub fn three() -> Result<Self, Error> {
        let net = Self::namespaces()?;
        net.plug_lan()?;
        net.plug_wan()?;
        Ok(net)
    }

    /// The same with an L3 `tun` device (no Ethernet header) between client and gateway.
    ///
    /// # Errors
    /// Whatever stops the set-up; nothing is left behind.
    pub fn three_l3() -> Result<Self, Error> {
        let mut net = Self::namespaces()?;
        net.wires = tun((&net.client, "eth0"), (&net.gateway, "lan"))?;
        net.address_lan()?;
        net.plug_wan()?;
        Ok(net)
    }

    /// A router on either side of the gateway, which takes no packet above `mtu` bytes in any direction
    /// and says so by ICMP, as if the link beyond were narrow, while all ends believe in 1,500.
    /// Here the gateway's addresses are 10.3.0.1 and fd00:3::1 on `lan`, 10.4.0.1 and fd00:4::1 on `wan`.
    ///
    /// # Errors
    /// Whatever stops the set-up; nothing is left behind.
    pub fn narrow(mtu: u16) -> Result<Self, Error> {
        let mut net = Self::namespaces()?;
        let (near, far) = (Namespace::new("near")?, Namespace::new("far")?);
        net.client.join("eth0", &near, "client")?;
        near.join("gateway", &net.gateway, "lan")?;
        net.gateway.join("wan", &far, "gateway")?;
        far.join("server", &net.server, "eth0")?;
        address(&net.client, "eth0", "10.1.0.2/24", "fd00:1::2/64")?;
        address(&near, "client", "10.1.0.1/24", "fd00:1::1/64")?;
        address(&near, "gateway", "10.3.0.2/24", "fd00:3::2/64")?;
        address(&net.gateway, "lan", "10.3.0.1/24", "fd00:3::1/64")?;
        address(&net.gateway, "wan", "10.4.0.1/24", "fd00:4::1/64")?;
        address(&far, "gateway", "10.4.0.2/24", "fd00:4::2/64")?;
        address(&far, "server", "10.2.0.1/24", "fd00:2::1/64")?;
        address(&net.server, "eth0", "10.2.0.2/24", "fd00:2::2/64")?;
        net.public_addresses()?;
        route(&net.client, "default", "10.1.0.1", "default", "fd00:1::1", "")?;
        route(&net.gateway, "10.1.0.0/24", "10.3.0.2", "fd00:1::/64", "fd00:3::2", "")?;
        route(&net.gateway, "default", "10.4.0.2", "default", "fd00:4::2", "")?;
        route(&net.server, "default", "10.2.0.1", "default", "fd00:2::1", "")?;
        // A locked MTU of a route is what a forwarding host holds packets against (ip_dst_mtu_maybe_forward).
        let narrow = format!("mtu lock {mtu}");
        let host = |ns: &Namespace, to: &str, device| ns.ip(&format!("route add {to} dev {device} {narrow}"));
        route(&near, "default", "10.3.0.1", "default", "fd00:3::1", &narrow)?;
        host(&near, "10.1.0.2/32", "client")?;
        host(&near, "fd00:1::2/128", "client")?;
        route(&far, "10.1.0.0/24", "10.4.0.1", "fd00:1::/64", "fd00:4::1", &narrow)?;
        host(&far, "10.2.0.2/32", "server")?;
        host(&far, "fd00:2::2/128", "server")?;
        host(&far, "10.4.0.1/32", "gateway")?;
        host(&far, "fd00:4::1/128", "gateway")?;
        for router in [&near, &far] {
            forwarding(router)?;
        }
        net.routers = vec![near, far];
        Ok(net)
    }

    fn namespaces() -> Result<Self, Error> {
        let net = Self {
            wires: Vec::new(),
            client: Namespace::new("client")?,
            gateway: Namespace::new("gw")?,
            server: Namespace::new("server")?,
            routers: Vec::new(),
        };
        forwarding(&net.gateway)?;
        Ok(net)
    }

    /// Joins `lan` and the client again, after `ip link del lan` on the gateway.
    ///
    /// # Errors
    /// Whatever stops it.
    pub fn plug_lan(&self) -> Result<(), Error> {
        self.gateway.join("lan", &self.client, "eth0")?;
        self.address_lan()
    }

    fn address_lan(&self) -> Result<(), Error> {
        address(&self.client, "eth0", "10.1.0.2/24", "fd00:1::2/64")?;
        address(&self.gateway, "lan", "10.1.0.1/24", "fd00:1::1/64")?;
        route(&self.client, "default", "10.1.0.1", "default", "fd00:1::1", "")
    }

    fn plug_wan(&self) -> Result<(), Error> {
        self.gateway.join("wan", &self.server, "eth0")?;
        address(&self.gateway, "wan", "10.2.0.1/24", "fd00:2::1/64")?;
        address(&self.server, "eth0", "10.2.0.2/24", "fd00:2::2/64")?;
        self.public_addresses()?;
        route(&self.gateway, "default", "10.2.0.2", "default", "fd00:2::2", "")?;
        route(&self.server, "default", "10.2.0.1", "default", "fd00:2::1", "")
    }

    fn public_addresses(&self) -> Result<(), Error> {
        address(&self.server, "lo", "8.8.8.8/32", "2001:4860:4860::8888/128")
    }
}

impl Namespace {
    /// Joins two namespaces with a veth pair, made in place, and waits until it carries packets.
    ///
    /// # Errors
    /// Whatever stops it.
    pub fn join(&self, device: &str, peer: &Self, peer_device: &str) -> Result<(), Error> {
        self.ip(&format!("link add {device} type veth peer name {peer_device} netns {}", peer.name()))?;
        up((self, device), (peer, peer_device))
    }
}

/// Joins two namespaces with a pair of tun devices; the two `socat` are the wire between them.
fn tun(a: (&Namespace, &str), b: (&Namespace, &str)) -> Result<Vec<Proc>, Error> {
    require_tool("socat")?;
    // An abstract socket would belong to one namespace; SEQPACKET (5) keeps packets apart.
    let path = std::env::temp_dir().join(format!("tp-wire-{}", random_suffix()));
    let end = |(ns, device): (&Namespace, &str), socket: &str| {
        ns.ip(&format!("tuntap add {device} mode tun"))?;
        let socket = format!("{socket}:{},socktype=5", path.display());
        ns.start(&format!("socat -d -d -b 65536 {socket} TUN,tun-name={device},iff-no-pi"))
    };
    let listening = end(a, "UNIX-LISTEN")?;
    listening.wait_line(&["listening"], PATIENCE)?;
    let connected = end(b, "UNIX-CONNECT")?;
    for wire in [&listening, &connected] {
        wire.wait_line(&["starting data transfer loop"], PATIENCE)?;
    }
    // Both ends hold the socket by now; its name is of no more use.
    fs::remove_file(&path).map_err(Error::io(path.display().to_string()))?;
    up(a, b)?;
    Ok(vec![listening, connected])
}

/// Sets both ends up and waits until both have their carrier: IPv6 is silent before.
fn up(a: (&Namespace, &str), b: (&Namespace, &str)) -> Result<(), Error> {
    for (ns, device) in [a, b] {
        ns.ip(&format!("link set {device} up"))?;
    }
    for (ns, device) in [a, b] {
        wait_carrier(ns, device)?;
    }
    Ok(())
}

fn wait_carrier(ns: &Namespace, device: &str) -> Result<(), Error> {
    // tun devices have the state UNKNOWN for ever.
    let is_up = |line: &str| line.contains("LOWER_UP") && !line.contains("state DOWN");
    let show = format!("link show dev {device}");
    if is_up(&ns.ip(&show)?) {
        return Ok(());
    }
    let monitor = ns.start(&format!("ip -o monitor link dev {device}"))?;
    // It may have come up while the monitor started, which then has nothing to tell: ask again now and then.
    const BETWEEN_QUESTIONS: Duration = Duration::from_secs(1);
    let begun = Instant::now();
    loop {
        match monitor.wait_line(&["LOWER_UP", "state UP"], BETWEEN_QUESTIONS) {
            Ok(_line) => return Ok(()),
            Err(_nothing_said) if is_up(&ns.ip(&show)?) => return Ok(()),
            Err(nothing_said) if begun.elapsed() > PATIENCE => return Err(nothing_said),
            Err(_nothing_said) => {}
        }
    }
}

fn address(ns: &Namespace, device: &str, v4: &str, v6: &str) -> Result<(), Error> {
    ns.ip(&format!("addr add {v4} dev {device}\naddr add {v6} dev {device} nodad")).map(drop)
}

fn route(ns: &Namespace, to4: &str, via4: &str, to6: &str, via6: &str, more: &str) -> Result<(), Error> {
    ns.ip(&format!("route add {to4} via {via4} {more}"))?;
    ns.ip(&format!("route add {to6} via {via6} {more}")).map(drop)
}

fn forwarding(ns: &Namespace) -> Result<(), Error> {
    ns.set_sysctl("net.ipv4.ip_forward", "1")?;
    ns.set_sysctl("net.ipv6.conf.all.forwarding", "1")
}
