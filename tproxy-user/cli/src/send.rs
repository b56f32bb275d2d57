//! `tproxy send`: one UDP datagram from an address that need not be this host's.

use std::net::SocketAddr;

use anyhow::{Context as _, anyhow};

use tproxy::{family::Family, socket};

/// `tproxy send`
#[derive(Debug, clap::Args)]
pub struct SendArgs {
    /// Address and port it comes from, of any host
    #[arg(long, value_name = "ADDR:PORT")]
    from: SocketAddr,
    /// Address and port it goes to
    #[arg(long, value_name = "ADDR:PORT")]
    to: SocketAddr,
    /// What is in it
    text: String,
}

impl SendArgs {
    /// Finds what no host could send.
    ///
    /// # Errors
    /// Addresses of two families, or a port 0.
    pub fn check(self) -> anyhow::Result<Self> {
        let Self { from, to, .. } = &self;
        if Family::of(from.ip()) != Family::of(to.ip()) {
            return Err(anyhow!("--from {from} and --to {to} are not of one address family"));
        }
        // A source port of 0 would be one of the kernel's choice.
        if let Some(name) = [("--from", from), ("--to", to)].iter().find(|(_, end)| end.port() == 0) {
            return Err(anyhow!("{} {}: the port has to be 1 to 65535", name.0, name.1));
        }
        Ok(self)
    }

    /// Sends it, by the host's own routes.
    ///
    /// # Errors
    /// A missing privilege, an address that somebody of this host holds, or no way to the destination.
    pub fn send(&self) -> anyhow::Result<String> {
        let Self { from, to, text } = self;
        let socket = socket::datagram_from(*from)?;
        let sent =
            socket.send_to(text.as_bytes(), &(*to).into()).with_context(|| format!("cannot send to {to}"));
        sent.map(|_| format!("sent from {from} to {to}")).map_err(|error| anyhow!("{error:#}"))
    }
}
