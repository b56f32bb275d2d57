//! Rules of ours in the chains of others' firewalls, which accept what is steered. They have to be there: what one chain
//! accepts, another at the same hook may still discard (nft(8), "Verdict statements").
//!
//! Firewalls are changed by their own programs, which know how each of them writes what another has to read.

use std::{fmt, io, process::Command};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::HostError;
use crate::mark::Mark;

/// Where steered packets are to be accepted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admission {
    /// In a chain that is built into a table of iptables.
    Iptables {
        /// Of the family, and of the kernel's packet filter that the table is in.
        program: Iptables,
        /// The table.
        table: String,
        /// The chain.
        chain: String,
    },
    /// In a base chain of nft.
    Nft {
        /// As nft names it: `ip`, `ip6`, `inet`.
        family: String,
        /// The table.
        table: String,
        /// The chain.
        chain: String,
    },
}

/// A program of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum Iptables {
    Iptables,
    Ip6tables,
    IptablesNft,
    Ip6tablesNft,
    IptablesLegacy,
    Ip6tablesLegacy,
}

impl Iptables {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Ip6tables => "ip6tables",
            Self::IptablesNft => "iptables-nft",
            Self::Ip6tablesNft => "ip6tables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Ip6tablesLegacy => "ip6tables-legacy",
        }
    }
}

impl fmt::Display for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iptables { program, table, chain } => {
                write!(f, "accept rule in {}, table {table}, chain {chain}", program.name())
            }
            Self::Nft { family, table, chain } => {
                write!(f, "accept rule in nft, table {family} {table}, chain {chain}")
            }
        }
    }
}

/// Seconds for which iptables waits for others who change the same.
const WAIT: &str = "2";

impl Admission {
    /// Whether the rule is there; not so if its chain is not, either.
    pub(super) fn stands(&self, mark: Mark) -> Result<bool, HostError> {
        match self {
            Self::Iptables { .. } => Ok(self.iptables("-C", mark)?.is_ok()),
            Self::Nft { .. } => self.handles(mark).map(|handles| !handles.is_empty()),
        }
    }

    /// Puts the rule before all others of the chain, if it is not there.
    pub(super) fn make(&self, mark: Mark) -> Result<(), HostError> {
        if self.stands(mark)? {
            return Ok(());
        }
        let made = match self {
            Self::Iptables { .. } => self.iptables("-I", mark)?,
            Self::Nft { family, table, chain } => {
                let accept = format!(
                    "meta mark and {:#x} == {:#x} accept comment \"{}\"",
                    mark.mask(),
                    mark.steer(),
                    comment(mark)
                );
                self.run("nft", &["insert", "rule", family, table, chain, &accept])?.map(drop)
            }
        };
        made.map_err(|said| self.refused("add", said))
    }

    /// Removes the rule. One that is gone, with its chain or without, is [`io::ErrorKind::NotFound`].
    pub(super) fn remove(&self, mark: Mark) -> Result<io::Result<()>, HostError> {
        if !self.stands(mark)? {
            return Ok(Err(io::ErrorKind::NotFound.into()));
        }
        match self {
            Self::Iptables { .. } => {
                self.iptables("-D", mark)?.map_err(|said| self.refused("remove", said))?;
            }
            Self::Nft { family, table, chain } => {
                for handle in self.handles(mark)? {
                    let delete = ["delete", "rule", family, table, chain, "handle", &handle.to_string()];
                    self.run("nft", &delete)?.map_err(|said| self.refused("remove", said))?;
                }
            }
        }
        Ok(Ok(()))
    }

    fn iptables(&self, command: &str, mark: Mark) -> Result<Result<(), String>, HostError> {
        let Self::Iptables { program, table, chain } = self else { return Ok(Ok(())) };
        let (mark, comment) = (mark.to_string(), comment(mark));
        let rule = ["-m", "mark", "--mark", &mark, "-m", "comment", "--comment", &comment, "-j", "ACCEPT"];
        let line = [&["-w", WAIT, "-t", table, command, chain], &rule[..]].concat();
        Ok(self.run(program.name(), &line)?.map(drop))
    }

    /// Numbers of our rules in a chain of nft.
    fn handles(&self, mark: Mark) -> Result<Vec<u64>, HostError> {
        const ABSENT: &str = "No such file or directory";
        let Self::Nft { family, table, chain } = self else { return Ok(Vec::new()) };
        let listed = match self.run("nft", &["-j", "-a", "list", "chain", family, table, chain])? {
            Ok(text) => serde_json::from_str::<Value>(&text)
                .map_err(|error| self.refused("look for", error.to_string()))?,
            Err(said) if said.contains(ABSENT) => return Ok(Vec::new()),
            Err(said) => return Err(self.refused("look for", said)),
        };
        let objects = listed["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
        let rules = objects.iter().map(|object| &object["rule"]);
        let ours = rules.filter(|rule| rule["comment"] == *comment(mark));
        Ok(ours.filter_map(|rule| rule["handle"].as_u64()).collect())
    }

    /// What a program prints, or says where it fails.
    fn run(&self, program: &str, args: &[&str]) -> Result<Result<String, String>, HostError> {
        let ended = Command::new(program)
            .args(args)
            .output()
            .map_err(|error| self.refused("look for", format!("{program}: {error}")))?;
        if ended.status.success() {
            return Ok(Ok(String::from_utf8_lossy(&ended.stdout).into_owned()));
        }
        let said = String::from_utf8_lossy(&ended.stderr);
        Ok(Err(format!("{program}: {}", said.lines().next().unwrap_or("it failed"))))
    }

    fn refused(&self, action: &'static str, said: String) -> HostError {
        HostError::Firewall { action, rule: self.to_string(), said }
    }
}

/// By which a rule is known to be ours.
fn comment(mark: Mark) -> String {
    format!("tproxy {mark}")
}
