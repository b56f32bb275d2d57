//! NAT of this host, which may send elsewhere what is for one of its own addresses: published ports.

use std::{fs, path::Path};

/// Whether there may be any: the kernel tracks connections, without which there is none.
pub(crate) fn is_possible() -> bool {
    Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists()
}

/// Whether a packet that bears our mark is delivered to a socket of the host's as if it did not, beside rules that deliver what
/// `lo` receives by that mark: neither does its sender seem to be this host then (`fib_validate_source()` asks by the mark, as if
/// from `lo`), nor do the replies bear it.
pub(crate) fn marks_are_harmless<'a>(interfaces: impl IntoIterator<Item = &'a str>) -> bool {
    let is_set = |key: &str| {
        fs::read_to_string(format!("/proc/sys/net/ipv4/{key}")).is_ok_and(|value| value.trim() != "0")
    };
    let mut interfaces = ["all"].into_iter().chain(interfaces);
    !is_set("tcp_fwmark_accept")
        && !is_set("fwmark_reflect")
        && !interfaces.any(|interface| is_set(&format!("conf/{interface}/src_valid_mark")))
}
