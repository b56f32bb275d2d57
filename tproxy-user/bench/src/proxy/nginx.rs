//! nginx's stream module behind iptables TPROXY.

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsRawFd as _,
};

use anyhow::Context as _;
use rustix::io::{FdFlags, fcntl_setfd};
use socket2::{Domain, Socket, Type};
use tproxy::config::Source;
use tproxy_netns::{Namespace, Proc};

use super::{PORT, Proxy};
use crate::{
    server::{nginx_config, write_config},
    steering::{self, Listeners, Rules},
};

/// A process for each CPU, no logs.
pub(super) fn start(source: Source, rules: Rules, gateway: &Namespace, cpus: usize) -> anyhow::Result<Proxy> {
    let bind = if source == Source::Host { "" } else { "proxy_bind $remote_addr transparent;" };
    // The module is a file of its own in Debian; elsewhere it may be built in.
    let config = write_config(&format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n{}",
        nginx_config(
            cpus,
            &format!(
                "stream {{ access_log off; tcp_nodelay on; proxy_timeout 2h; server {{ \
                 listen {PORT} reuseport backlog=4096; {bind} proxy_pass $server_addr:$server_port; }} }}"
            )
        )
    ))?;
    let listeners = (0..cpus).map(|_| listener(gateway)).collect::<Result<Vec<_>, _>>()?;
    // nginx takes the sockets that the variable names for its listeners, as it does when it replaces itself.
    let numbers: String = listeners.iter().map(|listener| format!("{};", listener.as_raw_fd())).collect();
    let mut command = gateway.command("nginx");
    command.args(["-e", "stderr", "-c"]).arg(&config).env("NGINX", numbers);
    let proc = Proc::start(command)?;
    steering::load_iptables(gateway, rules, &Listeners { tcp: vec![PORT], udp: Vec::new() })?;
    Ok(Proxy::Behind(proc))
}

/// nginx cannot make a listener transparent, but it can inherit one that is. Unless that is bound to no address, nginx
/// takes the address it is bound to for the one that a connection was made to.
fn listener(gateway: &Namespace) -> anyhow::Result<Socket> {
    let make = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
        socket.set_ip_transparent_v4(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into())?;
        socket.listen(4096)?;
        fcntl_setfd(&socket, FdFlags::empty())?;
        std::io::Result::Ok(socket)
    };
    gateway.enter(make).context("a transparent listener for nginx")
}
