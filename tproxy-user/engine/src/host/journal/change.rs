//! One change of the host: what it is, how it is made, how it is taken back.

use std::{fmt, io, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{Identity, Record};
use crate::family::Family;
use crate::host::{
    Direction, HostError,
    admission::Admission,
    clsact, is_absent, pins,
    policy::{self, Common, Deed, SeenRouting, Which},
    sysctl::Sysctl,
};

/// A change of the host that the journal makes and takes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Packets with the steer mark that arrive on `iif` look up the instance's table.
    Rule {
        /// Of the packets.
        family: Family,
        /// Name of the interface; it need not exist.
        iif: String,
    },
    /// One of the rules that take the place of [`Self::Rule`] where there are many interfaces.
    CommonRule {
        /// Of the packets.
        family: Family,
        /// Which of them.
        rule: Common,
    },
    /// Sockets of the instance whose user id stands for a table ([`policy::uid_for`]) look up that one.
    Way {
        /// Of the packets.
        family: Family,
        /// Which it is.
        table: u32,
    },
    /// The table's `local default dev lo`.
    LocalRoute {
        /// Of the packets.
        family: Family,
    },
    /// A per-interface sysctl takes a value.
    Sysctl {
        /// Which.
        sysctl: Sysctl,
        /// The value it takes.
        value: String,
    },
    /// A clsact qdisc for a filter that outlives the process. The datapath attaches the filter afterwards.
    TcFilter {
        /// Name of the interface.
        interface: String,
        /// Its index, by which it is known whatever it is called.
        index: u32,
        /// Where it is attached.
        direction: Direction,
    },
    /// A directory of the BPF file system with pins of links, which outlive the process. The datapath pins them
    /// afterwards.
    Pins {
        /// Where.
        directory: PathBuf,
    },
    /// Steered packets are accepted in a chain of somebody's firewall.
    Admit {
        /// Where.
        at: Admission,
    },
}

impl Change {
    /// Whether it stands whatever the rules need, until it is taken back by itself.
    pub(super) const fn lasts(&self) -> bool {
        matches!(self, Self::Pins { .. } | Self::Admit { .. })
    }

    /// Whether both are about the same sysctl, or the clsact qdisc of the same interface.
    fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Sysctl { sysctl, .. }, Self::Sysctl { sysctl: other, .. }) => sysctl == other,
            (Self::TcFilter { index, .. }, Self::TcFilter { index: other, .. }) => index == other,
            _ => false,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { family, iif } => write!(f, "{family} rule for packets from {iif}"),
            Self::CommonRule { family, rule: Common::All } => write!(f, "{family} rule for all packets"),
            Self::CommonRule { family, rule: Common::PastLoopback } => {
                write!(f, "{family} rule for what leaves")
            }
            Self::CommonRule { family, rule: Common::Landing } => {
                write!(f, "{family} rule where what leaves goes on")
            }
            Self::CommonRule { family, rule: Common::OnLoopback } => {
                write!(f, "{family} rule for what lands on lo")
            }
            Self::Way { family, table } => {
                write!(f, "{family} rule for what is relayed by the table {table}")
            }
            Self::LocalRoute { family } => write!(f, "{family} local default route"),
            Self::Sysctl { sysctl, .. } => write!(f, "sysctl {sysctl}"),
            Self::TcFilter { interface, direction, .. } => write!(f, "tc {direction} filter on {interface}"),
            Self::Admit { at } => at.fmt(f),
            Self::Pins { directory } => write!(f, "pinned links in {}", directory.display()),
        }
    }
}

/// The interface had no clsact qdisc; where it had one, nothing is noted and nothing removed.
const NO_QDISC: &str = "no clsact";

/// A change on record, with what it takes to go back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    change: Change,
    /// Before any instance touched it: value of a sysctl, or [`NO_QDISC`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<String>,
}

/// What taking back found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undone {
    /// It was there, and is no more.
    Gone,
    /// It was not there, or no longer ours.
    Nothing,
}

impl Entry {
    /// `living` are the instances on record, this one among them.
    pub(super) fn prepare(change: Change, living: &[Record]) -> Result<Self, HostError> {
        // Where several instances need the same, the last to leave restores it.
        let original = living.iter().find_map(|record| record.original(&change)).map(str::to_owned);
        let before = match (&change, original) {
            (_, Some(original)) => Some(original),
            (Change::Sysctl { sysctl, .. }, None) => Some(sysctl.read()?),
            (Change::TcFilter { index, .. }, None) => {
                let exists = clsact::exists(*index).map_err(|source| HostError::Netlink {
                    action: format!("look for the {change}"),
                    source,
                })?;
                (!exists).then(|| NO_QDISC.to_owned())
            }
            (
                Change::Rule { .. }
                | Change::CommonRule { .. }
                | Change::Way { .. }
                | Change::LocalRoute { .. }
                | Change::Pins { .. }
                | Change::Admit { .. },
                None,
            ) => None,
        };
        Ok(Self { change, before })
    }

    /// One that stands already, without anybody knowing what was there before.
    pub(super) const fn adopted(change: Change) -> Self {
        Self { change, before: None }
    }

    pub(super) fn change(&self) -> &Change {
        &self.change
    }

    /// Whether it is in force. `seen` is what the kernel says about rules and routes.
    pub(super) fn stands(&self, identity: &Identity, seen: &SeenRouting) -> Result<bool, HostError> {
        match &self.change {
            Change::Rule { .. } | Change::CommonRule { .. } | Change::Way { .. } => {
                Ok(seen.has_rule(identity, &self.change))
            }
            Change::LocalRoute { family } => Ok(seen.has_route(*family)),
            Change::Sysctl { sysctl, value } => Ok(sysctl.read()? == *value),
            Change::TcFilter { index, .. } => clsact::exists(*index).map_err(|source| HostError::Netlink {
                action: format!("look for the {}", self.change),
                source,
            }),
            Change::Pins { directory } => Ok(directory.exists()),
            Change::Admit { at } => at.stands(identity.mark),
        }
    }

    /// Makes it; a rule or route that is there already is no error.
    pub(super) fn make(&self, identity: &Identity) -> Result<(), HostError> {
        let made = match &self.change {
            Change::Rule { family, iif } => policy::rule(Deed::Add, identity, *family, Which::From(iif)),
            Change::CommonRule { family, rule } => {
                policy::rule(Deed::Add, identity, *family, Which::Common(*rule))
            }
            Change::Way { family, table } => policy::rule(Deed::Add, identity, *family, Which::Way(*table)),
            Change::LocalRoute { family } => policy::local_route(Deed::Add, identity, *family),
            // What is so already need not be written: /proc/sys is read-only in most containers.
            Change::Sysctl { sysctl, value } if sysctl.read()? == *value => return Ok(()),
            Change::Sysctl { sysctl, value } => return sysctl.write(value),
            Change::TcFilter { interface, index, .. } => match clsact::add(*index) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(HostError::NoClsact(interface.clone()));
                }
                added => added,
            },
            Change::Pins { directory } => return pins::create(directory),
            Change::Admit { at } => return at.make(identity.mark),
        };
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made
                .map_err(|source| HostError::Netlink { action: format!("add the {}", self.change), source }),
        }
    }

    /// `others` are the living instances but for the one whose change this is.
    pub(super) fn undo(&self, identity: &Identity, others: &[Record]) -> Result<Undone, HostError> {
        let removed = match &self.change {
            Change::Rule { family, iif } => policy::rule(Deed::Delete, identity, *family, Which::From(iif)),
            Change::CommonRule { family, rule } => {
                policy::rule(Deed::Delete, identity, *family, Which::Common(*rule))
            }
            Change::Way { family, table } => {
                policy::rule(Deed::Delete, identity, *family, Which::Way(*table))
            }
            Change::LocalRoute { family } => policy::local_route(Deed::Delete, identity, *family),
            Change::Sysctl { sysctl, value } => return self.restore(sysctl, value, others),
            Change::TcFilter { index, direction, .. } => {
                let removed = clsact::remove_filter(*index, *direction, identity.mark);
                // The last filter takes the qdisc along; of a stopped datapath none is left by now.
                match removed {
                    Err(error) if !is_absent(&error) => Err(error),
                    _ if self.before.is_none() || self.is_needed(others) => removed,
                    _ => clsact::remove_unused(*index),
                }
            }
            Change::Pins { directory } => pins::remove(directory),
            Change::Admit { at } => at.remove(identity.mark)?,
        };
        match removed {
            Ok(()) => Ok(Undone::Gone),
            Err(error) if is_absent(&error) => Ok(Undone::Nothing),
            Err(source) => Err(HostError::Netlink { action: format!("remove the {}", self.change), source }),
        }
    }

    fn restore(&self, sysctl: &Sysctl, value: &str, others: &[Record]) -> Result<Undone, HostError> {
        let Some(before) = &self.before else { return Ok(Undone::Nothing) };
        match sysctl.read() {
            Ok(now) if now == value && now != *before && !self.is_needed(others) => {
                sysctl.write(before).map(|()| Undone::Gone)
            }
            Ok(_) => Ok(Undone::Nothing),
            Err(HostError::Sysctl { source, .. }) if is_absent(&source) => Ok(Undone::Nothing),
            Err(error) => Err(error),
        }
    }

    fn is_needed(&self, others: &[Record]) -> bool {
        others.iter().any(|record| record.original(&self.change).is_some())
    }

    pub(super) fn original(&self, change: &Change) -> Option<&str> {
        if self.change.meets(change) { self.before.as_deref() } else { None }
    }
}
