//! What a task needs of the host: root, programs, packages.

mod apt;

pub(crate) use apt::install;

use std::path::PathBuf;

use anyhow::{Result, bail};

/// A program that a task runs.
pub(crate) struct Tool {
    /// Its name in `PATH`, or the file that it is.
    pub(crate) command: &'static str,
    /// The Debian package that brings it.
    pub(crate) package: &'static str,
    /// What it does for us, after "which".
    pub(crate) reason: &'static str,
    /// Whether the demo runs it too.
    pub(crate) demo: bool,
}

/// All that the demo, the tests and the benchmark run beside cargo.
pub(crate) const TOOLS: &[Tool] = &[
    Tool {
        command: "ip",
        package: "iproute2",
        reason: "makes namespaces, links, addresses and routes",
        demo: true,
    },
    Tool { command: "ss", package: "iproute2", reason: "shows sockets that linger", demo: false },
    Tool { command: "tc", package: "iproute2", reason: "shows filters that were left", demo: false },
    Tool { command: "nsenter", package: "util-linux", reason: "runs programs in a namespace", demo: true },
    Tool { command: "setpriv", package: "util-linux", reason: "runs programs as another user", demo: false },
    Tool { command: "systemd-analyze", package: "systemd", reason: "reads the unit file", demo: false },
    Tool { command: "curl", package: "curl", reason: "is the real client", demo: true },
    Tool { command: "nginx", package: "nginx-light", reason: "is the real server", demo: true },
    Tool { command: "dig", package: "bind9-dnsutils", reason: "asks for names", demo: true },
    Tool { command: "dnsmasq", package: "dnsmasq-base", reason: "answers with names", demo: true },
    Tool { command: "socat", package: "socat", reason: "makes tun devices and bare TCP ends", demo: false },
    Tool {
        command: "iptables",
        package: "iptables",
        reason: "is the firewall to get along with",
        demo: false,
    },
    Tool { command: "script", package: "bsdutils", reason: "is a terminal", demo: false },
    Tool { command: "traceroute", package: "traceroute", reason: "shows the way of packets", demo: false },
    Tool { command: "unshare", package: "util-linux", reason: "keeps the benchmark apart", demo: false },
    Tool { command: "nft", package: "nftables", reason: "steers in the benchmark", demo: false },
    Tool {
        command: "haproxy",
        package: "haproxy",
        reason: "is what the benchmark compares with",
        demo: false,
    },
    Tool {
        command: "/usr/lib/nginx/modules/ngx_stream_module.so",
        package: "libnginx-mod-stream",
        reason: "is what the benchmark compares with",
        demo: false,
    },
    Tool { command: "microsocks", package: "microsocks", reason: "is a SOCKS5 proxy", demo: false },
    Tool { command: "squid", package: "squid", reason: "is a proxy of HTTP", demo: false },
    Tool { command: "wrk", package: "wrk", reason: "makes HTTP requests in the benchmark", demo: false },
    Tool { command: "iperf3", package: "iperf3", reason: "makes bulk load in the benchmark", demo: false },
    Tool { command: "bpftool", package: "bpftool", reason: "shows eBPF links that were left", demo: false },
];

/// Fails, in one line, for anybody but root.
pub(crate) fn require_root(task: &str) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("`cargo xtask {task}` makes network namespaces and loads eBPF programs: run it as root");
    }
    Ok(())
}

/// Installs the packages of those `tools` that are missing.
pub(crate) fn require_tools<'a>(tools: impl IntoIterator<Item = &'a Tool>) -> Result<()> {
    let missing: Vec<_> = tools.into_iter().filter(|tool| find(tool.command).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages = Vec::new();
    for tool in missing {
        println!("missing: {} (Debian package {}), which {}", tool.command, tool.package, tool.reason);
        if !packages.contains(&tool.package) {
            packages.push(tool.package);
        }
    }
    install(&packages)
}

/// Where `command` is, in `PATH` or in the directories that only root's `PATH` has.
pub(crate) fn find(command: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(command))
        .find(|file| file.is_file())
}
