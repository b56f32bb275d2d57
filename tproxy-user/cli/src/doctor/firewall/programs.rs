//! The programs that show the rules of a firewall.

use std::{fs, io, process::Command};

use tproxy::{family::Family, host::admission::Iptables};

/// Which of the kernel's two packet filters it makes rules in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IptablesKind {
    Legacy,
    Nft,
}

pub(super) struct FilterProgram {
    pub(super) program: Iptables,
    pub(super) family: Family,
    pub(super) kind: IptablesKind,
}

/// Those that may have rules. To ask iptables-legacy for them loads its modules, so it is asked only where it was used.
pub(super) fn iptables_programs() -> Vec<FilterProgram> {
    let mut programs = Vec::new();
    for (program, legacy, nft, family, tables) in [
        (Iptables::Iptables, Iptables::IptablesLegacy, Iptables::IptablesNft, Family::V4, "ip_tables_names"),
        (
            Iptables::Ip6tables,
            Iptables::Ip6tablesLegacy,
            Iptables::Ip6tablesNft,
            Family::V6,
            "ip6_tables_names",
        ),
    ] {
        let version = Command::new(program.name()).arg("-V").output();
        let is_nft = version.is_ok_and(|ended| String::from_utf8_lossy(&ended.stdout).contains("nf_tables"));
        let is_used = fs::read_to_string(format!("/proc/thread-self/net/{tables}"))
            .is_ok_and(|tables| !tables.trim().is_empty());
        let (kind, other) = if is_nft {
            (IptablesKind::Nft, is_used.then_some((legacy, IptablesKind::Legacy)))
        } else {
            (IptablesKind::Legacy, Some((nft, IptablesKind::Nft)))
        };
        if is_nft || is_used {
            programs.push(FilterProgram { program, family, kind });
        }
        programs.extend(other.map(|(program, kind)| FilterProgram { program, family, kind }));
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
