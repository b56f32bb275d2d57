//! The kernel: its version, and what it does when it is asked.

use std::time::Duration;

use tproxy::{
    config::Steer,
    datapath::{Attachment, Datapath, Settings, Sizes, support},
    host::{HostError, lingering, preflight},
    mark::Mark,
};

use super::{
    Finding,
    modules::{self, Presence},
};

const KERNEL: &str = "kernel";
pub(super) const PROGRAMS: &str = "programs";
pub(super) const HELPERS: &str = "helpers";
pub(super) const TCX: &str = "tcx";
pub(super) const DESTROYING: &str = "destroying";

pub(super) fn examine(mark: Mark) -> Vec<Finding> {
    vec![version(), helpers(), programs(mark), tcx(), destroying()]
}

fn version() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    match preflight::recent(&release) {
        Ok(()) => Finding::ok(KERNEL, release),
        Err(error) => {
            Finding::fail(KERNEL, error.to_string(), "tproxy does not start", "boot Linux 6.1 or newer")
        }
    }
}

fn helpers() -> Finding {
    let cure = "boot a kernel with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_ACT and CONFIG_CGROUPS, 6.1 or newer";
    let probed = support::has_sk_lookup().and_then(|lookup| Ok((lookup, support::missing_helpers()?)));
    match probed {
        Ok((true, missing)) if missing.is_empty() => {
            Finding::ok(HELPERS, "sk_lookup and every helper that may be absent are there")
        }
        Ok((lookup, missing)) => {
            let lookup = (!lookup).then_some("sk_lookup programs");
            let missing: Vec<_> = lookup.into_iter().chain(missing).collect();
            Finding::fail(HELPERS, format!("missing: {}", missing.join(", ")), "tproxy does not start", cure)
        }
        Err(error) => Finding::unknown(HELPERS, &error),
    }
}

/// The very programs are loaded, and dropped again; nothing is attached.
fn programs(mark: Mark) -> Finding {
    let loaded = Datapath::load(Settings {
        mark,
        steer: Steer::default(),
        attachment: Attachment::of_this_kernel(),
        workers: 1,
        memory: Duration::from_secs(120),
        sizes: Sizes::LEAST,
        verbose: false,
    });
    match loaded.and_then(|mut datapath| datapath.load_all()) {
        Ok(()) => Finding::ok(PROGRAMS, "the verifier accepts the eBPF programs and maps"),
        Err(error) => Finding::fail(
            PROGRAMS,
            error.to_string(),
            "tproxy does not start",
            "run as root; if it is root, see `tproxy run -v …` for the verifier's words, and report them",
        ),
    }
}

fn tcx() -> Finding {
    if support::has_tcx() {
        return Finding::ok(TCX, "tc programs are attached by links, which vanish with the process");
    }
    let missing =
        ["sch_ingress", "cls_bpf"].into_iter().find(|name| modules::find(name) == Presence::Missing);
    if let Some(name) = missing {
        return Finding::fail(
            TCX,
            format!("the kernel has neither tcx links (Linux 6.6) nor {name}, to attach tc programs by"),
            "tproxy does not start",
            format!("modprobe {name} (from the package of the kernel's modules), or boot Linux 6.6 or newer"),
        );
    }
    Finding::warn(
        TCX,
        "the kernel has no tcx links (Linux 6.6)",
        "clsact filters are used in their place; after kill -9 they stay until the next start",
        "boot Linux 6.6 or newer, or after kill -9 run: tproxy cleanup",
    )
}

fn destroying() -> Finding {
    match lingering::can_destroy() {
        Ok(true) => Finding::ok(DESTROYING, "sockets that linger with foreign addresses can be destroyed"),
        Ok(false) => Finding::warn(
            DESTROYING,
            "the kernel lacks CONFIG_INET_DIAG_DESTROY",
            "for a minute after a stop, sockets in TIME_WAIT swallow forwarded packets of the same addresses and ports",
            "sysctl -w net.ipv4.tcp_early_demux=0",
        ),
        Err(HostError::NoSockDiag) => Finding::warn(
            DESTROYING,
            "the kernel does not list TCP sockets",
            "a stop does not wait for what closed connections still send, and sockets in TIME_WAIT swallow forwarded packets",
            "modprobe tcp_diag, or sysctl -w net.ipv4.tcp_early_demux=0",
        ),
        Err(error) => Finding::unknown(DESTROYING, &error),
    }
}
