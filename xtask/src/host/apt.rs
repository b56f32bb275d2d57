//! Debian packages, without the daemons that come with them.

use std::{collections::BTreeSet, fs, io, os::unix::fs::PermissionsExt, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::process::run;

/// Installs Debian packages; their daemons are neither started now nor enabled for the next boot.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if super::find("apt-get").is_none() {
        bail!("no apt-get here: install by hand what these Debian packages bring: {}", packages.join(" "));
    }
    if !rustix::process::geteuid().is_root() {
        bail!("only root can install packages: {}", packages.join(" "));
    }
    let _policy = NoDaemons::proclaim()?;
    let before = enabled()?;
    run(apt().args(["update", "--quiet"]))?;
    run(apt().args(["install", "--quiet", "--yes", "--no-install-recommends"]).args(packages))?;
    for service in enabled()?.difference(&before) {
        run(Command::new("update-rc.d").args([service, "disable"]))?;
    }
    Ok(())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Daemons that would start at the next boot: Debian links the scripts of these here, with systemd too. A package may
/// bring a script and not enable it, as iperf3 does, and then there is nothing to disable.
fn enabled() -> Result<BTreeSet<String>> {
    let entries = match fs::read_dir("/etc/rc2.d") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries.context("/etc/rc2.d")?,
    };
    let names: io::Result<Vec<_>> =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
    Ok(names.context("/etc/rc2.d")?.iter().filter_map(|name| started(name)).collect())
}

/// The service that a link like `S01nginx` starts; those that begin with `K` end one.
fn started(link: &str) -> Option<String> {
    let name = link.strip_prefix('S')?.trim_start_matches(|c: char| c.is_ascii_digit());
    (!name.is_empty()).then(|| name.to_owned())
}

/// While this lives, no package starts a daemon.
struct NoDaemons {
    /// A policy of the administrator's own is left alone.
    ours: bool,
}

impl NoDaemons {
    /// Asked by `invoke-rc.d` and `deb-systemd-invoke` before they start a daemon.
    const FILE: &str = "/usr/sbin/policy-rc.d";
    /// 101 is "forbidden" to those who ask; the name makes a file that a kill left behind known as ours.
    const SCRIPT: &str = "#!/bin/sh\n# tproxy's `cargo xtask`, while it installs packages\nexit 101\n";

    fn proclaim() -> Result<Self> {
        let file = Path::new(Self::FILE);
        let ours = match fs::read_to_string(file) {
            Ok(script) => script == Self::SCRIPT,
            Err(_) => {
                fs::write(file, Self::SCRIPT).context(Self::FILE)?;
                true
            }
        };
        let policy = Self { ours };
        if ours {
            fs::set_permissions(file, fs::Permissions::from_mode(0o755)).context(Self::FILE)?;
        }
        Ok(policy)
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(Self::FILE)
        {
            eprintln!("{} is still there, and keeps packages from starting daemons: {error}", Self::FILE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_that_start_a_service_count() {
        assert_eq!(started("S01nginx").as_deref(), Some("nginx"));
        for other in ["K01haproxy", "README", "S01"] {
            assert_eq!(started(other), None, "{other}");
        }
    }
}
