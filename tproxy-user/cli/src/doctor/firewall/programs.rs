//! The programs that show the rules of a firewall.

use std::{fs, io, process::Command};

use tproxy::family::Family;

/// Which of the kernel's two packet filters it makes rules in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IptablesKind {
    Legacy,
    Nft,
}

pub(super) struct Iptables {
    pub(super) program: &'static str,
    pub(super) family: Family,
    pub(super) kind: IptablesKind,
}

/// Those that may have rules. To ask iptables-legacy for them loads its modules, so it is asked only where it was used.
pub(super) fn iptables_programs() -> Vec<Iptables> {
    let mut programs = Vec::new();
    for (program, legacy, nft, family, tables) in [
        ("iptables", "iptables-legacy", "iptables-nft", Family::V4, "ip_tables_names"),
        ("ip6tables", "ip6tables-legacy", "ip6tables-nft", Family::V6, "ip6_tables_names"),
    ] {
        let version = Command::new(program).arg("-V").output();
        let is_nft = version.is_ok_and(|ended| String::from_utf8_lossy(&ended.stdout).contains("nf_tables"));
        let is_used = fs::read_to_string(format!("/proc/thread-self/net/{tables}"))
            .is_ok_and(|tables| !tables.trim().is_empty());
        let (kind, other) = if is_nft {
            (IptablesKind::Nft, is_used.then_some((legacy, IptablesKind::Legacy)))
        } else {
            (IptablesKind::Legacy, Some((nft, IptablesKind::Nft)))
        };
        if is_nft || is_used {
            programs.push(Iptables { program, family, kind });
        }
        programs.extend(other.map(|(program, kind)| Iptables { program, family, kind }));
    }
    programs
}

/// What a program prints. One that is not installed has no rules, since it takes it to make them.
pub(super) fn output(program: &str, args: &[&str]) -> Result<Option<String>, String> {
    let ended = match Command::new(program).args(args).output() {
        Ok(ended) => ended,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{program}: {error}")),
    };
    if ended.status.success() {
        return Ok(Some(String::from_utf8_lossy(&ended.stdout).into_owned()));
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(format!("{program}: {}", said.lines().next().unwrap_or("it failed")))
}
