//! One change of the host: what it is, how it is made, how it is taken back.

use std::{fmt, io};

use serde::{Deserialize, Serialize};

use super::{DetachFilter, Identity, Record};
use crate::family::Family;
use crate::host::{
    Direction, HostError,
    policy::{self, Deed},
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
    /// A clsact filter that outlives the process. Only recorded: the datapath attaches it afterwards.
    TcFilter {
        /// Name of the interface.
        interface: String,
        /// Where it is attached.
        direction: Direction,
    },
}

impl Change {
    /// Whether it is part of policy routing.
    pub(super) fn routes(&self) -> bool {
        matches!(self, Self::Rule { .. } | Self::LocalRoute { .. })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { family, iif } => write!(f, "{family} rule for packets from {iif}"),
            Self::LocalRoute { family } => write!(f, "{family} local default route"),
            Self::Sysctl { sysctl, .. } => write!(f, "sysctl {sysctl}"),
            Self::TcFilter { interface, direction } => write!(f, "tc {direction} filter on {interface}"),
        }
    }
}

/// A change on record, with what it takes to go back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    change: Change,
    /// Value of a sysctl before any instance touched it.
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
        let before = match &change {
            Change::Sysctl { sysctl, .. } => {
                // Where several instances need the same value, the last to leave restores it.
                let original = living.iter().find_map(|record| record.original(sysctl));
                Some(original.map_or_else(|| sysctl.read(), |value| Ok(value.to_owned()))?)
            }
            _ => None,
        };
        Ok(Self { change, before })
    }

    pub(super) fn change(&self) -> &Change {
        &self.change
    }

    pub(super) fn make(&self, identity: &Identity) -> Result<(), HostError> {
        match &self.change {
            Change::Rule { family, iif } => policy::rule(Deed::Add, identity, *family, iif),
            Change::LocalRoute { family } => policy::local_route(Deed::Add, identity, *family),
            Change::Sysctl { sysctl, value } => return sysctl.write(value),
            Change::TcFilter { .. } => Ok(()),
        }
        .map_err(|source| HostError::Netlink { action: format!("add the {}", self.change), source })
    }

    /// `others` are the living instances but for the one whose change this is.
    pub(super) fn undo(
        &self,
        identity: &Identity,
        others: &[Record],
        detach_filter: DetachFilter,
    ) -> Result<Undone, HostError> {
        let removed = match &self.change {
            Change::Rule { family, iif } => policy::rule(Deed::Delete, identity, *family, iif),
            Change::LocalRoute { family } => policy::local_route(Deed::Delete, identity, *family),
            Change::Sysctl { sysctl, value } => return self.restore(sysctl, value, others),
            Change::TcFilter { interface, direction } => detach_filter(interface, *direction, identity.mark),
        };
        match removed {
            Ok(()) => Ok(Undone::Gone),
            Err(error) if is_absent(&error) => Ok(Undone::Nothing),
            Err(source) => Err(HostError::Netlink { action: format!("remove the {}", self.change), source }),
        }
    }

    fn restore(&self, sysctl: &Sysctl, value: &str, others: &[Record]) -> Result<Undone, HostError> {
        let Some(before) = &self.before else { return Ok(Undone::Nothing) };
        let needed = others.iter().any(|record| record.original(sysctl).is_some());
        match sysctl.read() {
            Ok(now) if now == value && now != *before && !needed => {
                sysctl.write(before).map(|()| Undone::Gone)
            }
            Ok(_) => Ok(Undone::Nothing),
            Err(HostError::Sysctl { source, .. }) if is_absent(&source) => Ok(Undone::Nothing),
            Err(error) => Err(error),
        }
    }

    pub(super) fn original(&self, wanted: &Sysctl) -> Option<&str> {
        match &self.change {
            Change::Sysctl { sysctl, .. } if sysctl == wanted => self.before.as_deref(),
            _ => None,
        }
    }
}

/// Rules, routes, files and interfaces that somebody took away before us.
fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::ENODEV))
}
