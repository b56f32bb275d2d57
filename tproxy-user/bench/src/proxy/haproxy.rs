//! HAProxy behind iptables TPROXY.

use tproxy::config::Source;
use tproxy_netns::Namespace;

use super::{PORT, Proxy};
use crate::{
    server::{wait_listening, write_config},
    steering::{self, Listeners, Rules},
};

/// A thread and a listener for each CPU, splice for what looks like a bulk transfer, acknowledgements that go with data
/// where there is some, no logs.
pub(super) fn start(source: Source, rules: Rules, gateway: &Namespace, cpus: usize) -> anyhow::Result<Proxy> {
    let usesrc = if source == Source::Host { "" } else { "source 0.0.0.0 usesrc clientip\n" };
    let config = write_config(&format!(
        "global\nnbthread {cpus}\nmaxconn 9500\nmaxpipes 400\n\
         defaults\nmode tcp\ntimeout connect 10s\ntimeout client 2h\ntimeout server 2h\n\
         option splice-auto\noption tcp-smart-accept\noption tcp-smart-connect\n\
         listen all\nbind 127.0.0.1:{PORT} transparent shards by-thread\noption transparent\n{usesrc}"
    ))?;
    let proc = gateway.start(&format!("haproxy -db -f {}", config.display()))?;
    wait_listening(gateway, PORT)?;
    steering::load_iptables(gateway, rules, &Listeners { tcp: vec![PORT], udp: Vec::new() })?;
    Ok(Proxy::Behind(proc))
}
