//! Per-interface sysctls: `/proc/sys/net/ipv{4,6}/conf/INTERFACE/KEY`.
//!
//! `/proc/sys/net` shows the namespace of the calling thread (`net_ctl_root.lookup` asks `current`),
//! unlike `/proc/net`, which shows that of the process's first thread.

use std::{fmt, fs, io, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::HostError;
use crate::family::Family;

/// One value of one interface. `all` and `default` are refused: they change other people's interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Sysctl {
    interface: String,
    family: Family,
    key: String,
}

/// What a journal file holds before it is believed.
#[derive(Deserialize)]
struct Unchecked {
    interface: String,
    family: Family,
    key: String,
}

impl TryFrom<Unchecked> for Sysctl {
    type Error = HostError;

    fn try_from(Unchecked { interface, family, key }: Unchecked) -> Result<Self, HostError> {
        Self::new(&interface, family, &key)
    }
}

impl Sysctl {
    /// # Errors
    /// [`HostError::BadName`] for what no interface or key can be called (and would leave the directory).
    pub fn new(interface: &str, family: Family, key: &str) -> Result<Self, HostError> {
        // What dev_valid_name() of the kernel refuses, and the two that are no interface.
        let interface_ok = !matches!(interface, "" | "." | ".." | "all" | "default")
            && interface.len() < 16
            && !interface.contains(|c: char| c == '/' || c == '\0' || c.is_whitespace());
        if !interface_ok {
            return Err(HostError::BadName(interface.to_owned()));
        }
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(HostError::BadName(key.to_owned()));
        }
        Ok(Self { interface: interface.to_owned(), family, key: key.to_owned() })
    }

    fn path(&self) -> PathBuf {
        let family = match self.family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        ["/proc/sys/net", family, "conf", &self.interface, &self.key].iter().collect()
    }

    /// The value without the newline that ends it.
    ///
    /// # Errors
    /// [`HostError::Sysctl`]; its source is `NotFound` when the interface or the key does not exist.
    pub fn read(&self) -> Result<String, HostError> {
        let path = self.path();
        fs::read_to_string(&path).map(|text| text.trim_end().to_owned()).map_err(|source| HostError::Sysctl {
            action: "read",
            path,
            source,
        })
    }

    /// # Errors
    /// As [`Self::read`]; [`HostError::SysctlReadOnly`] in a container that must not write there.
    pub fn write(&self, value: &str) -> Result<(), HostError> {
        let path = self.path();
        fs::write(&path, value).map_err(|source| match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => HostError::SysctlReadOnly {
                assignment: format!("{}={value}", self.to_string().replace('/', ".")),
            },
            _ => HostError::Sysctl { action: "write", path, source },
        })
    }
}

impl fmt::Display for Sysctl {
    /// As `sysctl` writes it, but with slashes: interfaces may have dots in their names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().strip_prefix("/proc/sys").unwrap_or(&self.path()).display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for interface in ["", ".", "..", "all", "default", "a/b", "a b", "sixteen-bytes-xx"] {
            assert!(Sysctl::new(interface, Family::V4, "rp_filter").is_err(), "{interface:?}");
        }
        for key in ["", "..", "a/b", "neigh/../x"] {
            assert!(Sysctl::new("eth0", Family::V4, key).is_err(), "{key:?}");
        }
        let dotted = Sysctl::new("eth0.100", Family::V6, "accept_ra").unwrap();
        assert_eq!(dotted.to_string(), "net/ipv6/conf/eth0.100/accept_ra");
    }

    #[test]
    fn a_journal_cannot_smuggle_a_path_in() {
        let text = r#"{"interface":"../..","family":"v4","key":"x"}"#;
        assert!(serde_json::from_str::<Sysctl>(text).is_err());
    }
}
