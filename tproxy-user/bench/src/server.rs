//! What answers in the server's namespace, none of it ours.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use tproxy_netns::{Namespace, Proc, random_suffix};

use super::isolation::DIRECTORY;

/// How long a program may take until it listens.
const PATIENCE: Duration = Duration::from_secs(10);
const HTTP: u16 = 80;
const IPERF: u16 = 5201;

/// nginx, which answers with the address it sees, and iperf3.
#[derive(Debug)]
pub(super) struct Server {
    _programs: [Proc; 2],
}

impl Server {
    pub(super) fn start(namespace: &Namespace, cpus: usize) -> anyhow::Result<Self> {
        let http = format!(
            "http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; \
             server {{ listen {HTTP} reuseport backlog=4096; location / {{ return 200 \"$remote_addr\\n\"; }} }} }}"
        );
        let config = write_config(&nginx_config(cpus, &http))?;
        let nginx = namespace.start(&format!("nginx -e stderr -c {}", config.display()))?;
        let iperf = namespace.start("iperf3 --server")?;
        for port in [HTTP, IPERF] {
            wait_listening(namespace, port)?;
        }
        Ok(Self { _programs: [nginx, iperf] })
    }
}

/// An nginx that stays in the foreground and uses all CPUs and descriptors.
pub(super) fn nginx_config(cpus: usize, body: &str) -> String {
    format!(
        "user root; worker_processes {cpus}; worker_rlimit_nofile 20000; daemon off; \
         pid {DIRECTORY}/{}.pid; error_log stderr warn;\nevents {{ worker_connections 19000; }}\n{body}\n",
        random_suffix()
    )
}

/// Writes a configuration to a file of its own.
pub(super) fn write_config(text: &str) -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(DIRECTORY).join(format!("{}.conf", random_suffix()));
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Waits until somebody listens on a port. Not every program says when it does, and a connection to find out would be
/// relayed, so the kernel is asked.
pub(super) fn wait_listening(namespace: &Namespace, port: u16) -> anyhow::Result<()> {
    let wanted = format!(":{port}");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let sockets = namespace.run("ss -Hltn")?;
        let local = |line: &str| line.split_whitespace().nth(3).is_some_and(|local| local.ends_with(&wanted));
        if sockets.lines().any(local) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "nobody listens on port {port} within {PATIENCE:?}:\n{sockets}");
    }
}
