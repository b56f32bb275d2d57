//! Where a rule relays to, in place of the original destination.

mod credentials;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

pub use credentials::Credentials;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tproxy_common::flow::Protocol;

use super::values::{self, Text, text};

/// Longest name that DNS has, and of each of its labels.
const LONGEST_NAME: usize = 253;
const LONGEST_LABEL: usize = 63;

/// Where a rule relays to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// This address, TCP and UDP.
    Address(SocketAddr),
    /// One of these servers, TCP.
    Group(Arc<UpstreamGroup>),
}

impl Upstream {
    /// Whether flows of this protocol can go there.
    #[must_use]
    pub const fn carries(&self, protocol: Protocol) -> bool {
        match self {
            Self::Address(_) => true,
            Self::Group(_) => matches!(protocol, Protocol::Tcp),
        }
    }

    /// The ports that sockets of ours connect to.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        let (address, group) = match self {
            Self::Address(address) => (Some(address.port()), None),
            Self::Group(group) => (None, Some(group)),
        };
        address
            .into_iter()
            .chain(group.into_iter().flat_map(|group| &group.servers).map(|server| server.port))
    }

    /// The addresses that are known without asking for a name.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let (address, group) = match self {
            Self::Address(address) => (Some(address.ip()), None),
            Self::Group(group) => (None, Some(group)),
        };
        let servers = group.into_iter().flat_map(|group| &group.servers);
        address.into_iter().chain(servers.filter_map(|server| server.host.address()))
    }
}

impl From<SocketAddr> for Upstream {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl From<UpstreamServer> for Upstream {
    /// The only one.
    fn from(server: UpstreamServer) -> Self {
        Self::Group(Arc::new(UpstreamGroup {
            name: None,
            servers: vec![server],
            pick: Pick::default(),
            check: None,
            credentials: None,
        }))
    }
}

/// As rules write it, after `upstream=`.
impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains("://") {
            return UpstreamServer::parse(text).map(Self::from);
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 && !address.ip().is_unspecified() => Ok(Self::Address(address)),
            _ => Err("write upstream=ADDR:PORT, such as upstream=10.9.9.9:8443 or upstream=[2001:db8::1]:8443; or a \
                      URL, such as upstream=socks5://10.9.9.9:1080"
                .to_owned()),
        }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Group(group) => group.fmt(f),
        }
    }
}

/// Servers by any of which a flow may go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UpstreamGroup {
    /// By which rules name it; a rule's own URL has none.
    pub name: Option<Arc<str>>,
    /// At least one.
    pub servers: Vec<UpstreamServer>,
    /// Which of them is tried first.
    pub pick: Pick,
    /// Whether it is looked if they are there.
    pub check: Option<Check>,
    /// What they are to know us by.
    pub credentials: Option<Credentials>,
}

/// Which server of a group a flow goes by; where it does not connect, the others follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pick {
    /// The first in their order.
    #[default]
    First,
    /// Another for each flow, in turn.
    RoundRobin,
    /// The one with the fewest live flows.
    Least,
    /// Always the same for a client's address, as long as it is there.
    Hash,
}

/// Looking whether servers are there, by connecting to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// How often, such as 5s
    #[serde(with = "values::text")]
    #[schemars(schema_with = "values::schema::<Duration>")]
    pub every: Duration,
}

impl UpstreamGroup {
    /// Whether some address has to be asked for.
    #[must_use]
    pub fn has_names(&self) -> bool {
        self.servers.iter().any(|server| server.host.address().is_none())
    }
}

impl fmt::Display for UpstreamGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            return write!(f, "@{name}");
        }
        for (position, server) in self.servers.iter().enumerate() {
            write!(f, "{}{server}", if position == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// A server, as its URL says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UpstreamServer {
    /// What it is told before a flow's own bytes.
    pub scheme: Scheme,
    /// Where it is.
    pub host: Host,
    /// Its port.
    pub port: u16,
}

/// What a server is told, once it is connected, before a flow's own bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Nothing.
    Tcp,
    /// Where to connect to, as SOCKS5 has it (RFC 1928).
    Socks5,
    /// Where to connect to, as HTTP CONNECT has it (RFC 9110, 9.3.6).
    Http,
    /// Client and original destination, in a line of text.
    ProxyV1,
    /// The same in binary, with the number of the flow.
    ProxyV2,
}

impl Scheme {
    const ALL: [Self; 5] = [Self::Tcp, Self::Socks5, Self::Http, Self::ProxyV1, Self::ProxyV2];

    /// Whether it has a way to log in.
    #[must_use]
    pub const fn has_login(self) -> bool {
        matches!(self, Self::Socks5 | Self::Http)
    }

    /// The word for it in URLs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Socks5 => "socks5",
            Self::Http => "http",
            Self::ProxyV1 => "proxy-v1",
            Self::ProxyV2 => "proxy-v2",
        }
    }
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// At this address.
    Address(IpAddr),
    /// At the addresses that this name has at the time.
    Name(Arc<str>),
}

impl Host {
    /// Where no name has to be asked for.
    #[must_use]
    pub const fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Name(_) => None,
        }
    }
}

impl fmt::Display for UpstreamServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, host, port } = self;
        match host {
            Host::Address(address) => write!(f, "{}://{}", scheme.name(), SocketAddr::new(*address, *port)),
            Host::Name(name) => write!(f, "{}://{name}:{port}", scheme.name()),
        }
    }
}

impl Text for UpstreamServer {
    const WRITE: &'static str = "a URL of socks5, http, proxy-v1, proxy-v2 or tcp with a host and a port, such as \
                                 socks5://10.9.9.9:1080, http://proxy.example:3128 or tcp://[2001:db8::1]:80";
    const PATTERN: &'static str =
        "(socks5|http|proxy-v1|proxy-v2|tcp)://([A-Za-z0-9_.-]+|\\[[0-9a-fA-F.:]+\\]):[0-9]+/?";

    fn parse(text: &str) -> Result<Self, String> {
        let write = || format!("write {}", Self::WRITE);
        let (scheme, rest) = text.split_once("://").ok_or_else(write)?;
        let known = Scheme::ALL.into_iter().find(|known| known.name() == scheme);
        let scheme = known.ok_or_else(|| match scheme {
            "socks5h" | "socks" => {
                "write socks5://: the server is asked to connect, and that is all".to_owned()
            }
            "socks4" | "socks4a" => {
                "SOCKS4 is not spoken here: write socks5:// and have the server speak it".to_owned()
            }
            "https" => {
                "a proxy is not spoken to by TLS: write http://, or put what speaks TLS in between".to_owned()
            }
            _ => write(),
        })?;
        if rest.contains('@') {
            return Err(
                "a URL is seen by everybody, and has no user name and password: give them as credentials = \
                        { file = \"PATH\" } of [upstreams.NAME]"
                    .to_owned(),
            );
        }
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if let Ok(address) = authority.parse::<SocketAddr>() {
            let (ip, port) = (address.ip(), address.port());
            let whole = port != 0 && !ip.is_unspecified();
            return whole.then_some(Self { scheme, host: Host::Address(ip), port }).ok_or_else(write);
        }
        let (name, port) =
            authority.rsplit_once(':').ok_or_else(|| format!("the port is missing: {}", write()))?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(write)?;
        if !is_host_name(name) {
            return Err(format!("{name:?} is neither an address nor the name of a host: {}", write()));
        }
        Ok(Self { scheme, host: Host::Name(name.to_ascii_lowercase().into()), port })
    }

    fn written(&self) -> String {
        self.to_string()
    }
}

/// As names are resolved; one that ends in a number is an address that somebody has misspelt.
fn is_host_name(name: &str) -> bool {
    let labels = || name.strip_suffix('.').unwrap_or(name).split('.');
    let is_label = |label: &str| {
        (1..=LONGEST_LABEL).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    name.len() <= LONGEST_NAME && labels().all(is_label) && !labels().next_back().is_some_and(is_number)
}

impl Serialize for UpstreamServer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        text::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for UpstreamServer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_printed_as_they_are_read() {
        for url in [
            "tcp://192.0.2.1:80",
            "socks5://[2001:db8::1]:1080",
            "http://proxy.example:3128",
            "proxy-v1://a_b-c:1",
            "proxy-v2://127.0.0.1:65535",
        ] {
            assert_eq!(UpstreamServer::parse(url).unwrap().to_string(), url);
        }
        let same = UpstreamServer::parse("http://Proxy.Example:3128/").unwrap();
        assert_eq!(same.to_string(), "http://proxy.example:3128");
    }

    #[test]
    fn what_is_no_url_of_a_server_says_what_would_be() {
        let long = format!("socks5://{}.example:1", "a".repeat(64));
        for (url, words) in [
            ("10.9.9.9:1080", "write a URL"),
            ("ftp://10.9.9.9:21", "socks5"),
            ("socks5h://10.9.9.9:1080", "socks5://"),
            ("socks4://10.9.9.9:1080", "SOCKS4"),
            ("https://10.9.9.9:443", "TLS"),
            ("socks5://me:secret@10.9.9.9:1080", "credentials"),
            ("socks5://10.9.9.9", "port"),
            ("socks5://10.9.9.9:0", "port"),
            ("socks5://0.0.0.0:1080", "host"),
            ("socks5://10.9.9.999:1080", "neither"),
            ("socks5://2001:db8::1:1080", "neither"),
            ("socks5://:1080", "neither"),
            ("socks5://proxy..example:1080", "neither"),
            ("socks5://proxy.example:1080/path", "port"),
            (&long, "neither"),
        ] {
            let error = UpstreamServer::parse(url).expect_err(url);
            assert!(error.contains(words), "{url}: {error}");
        }
    }
}
