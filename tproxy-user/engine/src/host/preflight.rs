//! What must be true before anything is changed.

use rustix::thread::{CapabilitySet, capabilities};

use super::{HostError, links, local_table::LOOPBACK};

/// Linux 6.1, the oldest that the programs are verified and tested on (`cargo xtask vm`). They cannot run before 5.17, which
/// has the last of what they build on: `bpf_sk_lookup.ingress_ifindex`.
const NEEDED: (u32, u32) = (6, 1);

/// # Errors
/// The first thing that is missing: a capability, the kernel's version, or `lo`.
pub fn check() -> Result<(), HostError> {
    if let Some(name) = missing_capabilities()?.first() {
        return Err(HostError::MissingCapability(name));
    }
    recent(&rustix::system::uname().release().to_string_lossy())?;
    let loopback_up = links::snapshot()?.iter().any(|link| link.index == LOOPBACK && link.up);
    if loopback_up { Ok(()) } else { Err(HostError::LoopbackDown) }
}

/// The capabilities that are needed and not in effect.
///
/// # Errors
/// When the kernel does not tell.
pub fn missing_capabilities() -> Result<Vec<&'static str>, HostError> {
    let asked = capabilities(None).map_err(|error| HostError::Netlink {
        action: "read the process's capabilities".into(),
        source: error.into(),
    })?;
    Ok(missing(asked.effective))
}

fn missing(effective: CapabilitySet) -> Vec<&'static str> {
    // CAP_SYS_ADMIN contains the two that were split off from it in Linux 5.8 (capabilities(7)).
    let needed = [
        ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN),
        ("CAP_BPF", CapabilitySet::BPF | CapabilitySet::SYS_ADMIN),
        ("CAP_PERFMON", CapabilitySet::PERFMON | CapabilitySet::SYS_ADMIN),
        ("CAP_NET_RAW", CapabilitySet::NET_RAW),
        // A UDP session's socket is bound to the original destination, such as port 53 (ip(7)).
        ("CAP_NET_BIND_SERVICE", CapabilitySet::NET_BIND_SERVICE),
    ];
    needed.into_iter().filter(|(_, any)| !effective.intersects(*any)).map(|(name, _)| name).collect()
}

/// # Errors
/// [`HostError::KernelTooOld`] of a release, as `uname -r` has it.
pub fn recent(release: &str) -> Result<(), HostError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        // What cannot be read is not refused; loading the datapath will tell.
        _ => return Ok(()),
    };
    if version >= NEEDED {
        return Ok(());
    }
    Err(HostError::KernelTooOld {
        running: release.to_owned(),
        feature: "the datapath (the interface in sk_lookup, socket look-ups, ring buffer)",
        needs: "6.1",
    })
}

/// What is to be said where the running kernel lacks a feature.
#[must_use]
pub fn too_old(feature: &'static str, needs: &'static str) -> HostError {
    let running = rustix::system::uname().release().to_string_lossy().into_owned();
    HostError::KernelTooOld { running, feature, needs }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let network = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW | CapabilitySet::NET_BIND_SERVICE;
        let all = ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE"];
        assert_eq!(missing(CapabilitySet::empty()), all);
        assert_eq!(missing(network | CapabilitySet::BPF), ["CAP_PERFMON"]);
        assert!(missing(network | CapabilitySet::SYS_ADMIN).is_empty());
    }

    #[test]
    fn releases_are_compared_by_number() {
        for release in ["6.1.0", "6.1", "6.1.0-18-amd64", "6.12.1", "10.0-rc1"] {
            assert!(recent(release).is_ok(), "{release}");
        }
        for release in ["5.9.16", "5.15.0-1", "6.0.9", "4.19.0-26-cloud-amd64"] {
            assert!(recent(release).unwrap_err().to_string().contains("6.1"), "{release}");
        }
    }
}
