//! Debian's kernels: downloaded and unpacked under `target/vm`, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::initramfs;
use crate::process::{output, run};

/// One that a machine can boot.
pub(super) struct Kernel {
    /// As `uname -r` has it.
    pub(super) release: String,
    /// The kernel itself.
    pub(super) image: PathBuf,
    /// What it boots from.
    pub(super) initramfs: PathBuf,
}

impl Kernel {
    /// The newest of a version that Debian has, or the one in a package file.
    pub(super) fn find(version: &str) -> Result<Self> {
        let all = super::directory()?;
        let directory = if version.ends_with(".deb") {
            let name = Path::new(version).file_stem().context("a package has a name")?;
            let directory = all.join(name);
            unpack_once(&directory, || Ok(PathBuf::from(version)))?;
            directory
        } else {
            let package = newest(version)?;
            let directory = all.join(&package);
            unpack_once(&directory, || download(&package, &all))?;
            directory
        };
        let modules = directory.join("lib/modules");
        let release = only_entry(&modules)?;
        Ok(Self {
            image: directory.join("boot").join(format!("vmlinuz-{release}")),
            initramfs: initramfs::pack(&directory, &release)?,
            release,
        })
    }
}

/// The package of the general kernel: those for clouds cannot mount this host's files (9p).
fn newest(version: &str) -> Result<String> {
    let pattern = format!("^linux-image-{}[.].*[0-9]-amd64$", version.replace('.', "[.]"));
    let mut known = output(Command::new("apt-cache").args(["search", "--names-only", &pattern]))?;
    if known.is_empty() {
        run(Command::new("apt-get").args(["update", "--quiet"]))?;
        known = output(Command::new("apt-cache").args(["search", "--names-only", &pattern]))?;
    }
    let names = known.lines().filter_map(|line| line.split_once(' ')).map(|(name, _)| name);
    let newest = names.max_by_key(|name| numbers(name)).map(str::to_owned);
    newest.with_context(|| format!("no Debian package linux-image-{version}.…-amd64"))
}

/// Those in a name, in order, so that 6.12.117 comes after 6.12.99.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

fn download(package: &str, into: &Path) -> Result<PathBuf> {
    // Its sandbox is a user who may not write here.
    run(Command::new("apt-get")
        .args(["--option=APT::Sandbox::User=root", "--quiet", "download", package])
        .current_dir(into))?;
    let prefix = format!("{package}_");
    let mut files = fs::read_dir(into)?.filter_map(Result::ok).map(|entry| entry.path());
    files
        .find(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
        .with_context(|| format!("apt-get left no {prefix}…"))
}

fn unpack_once(directory: &Path, package: impl FnOnce() -> Result<PathBuf>) -> Result<()> {
    if directory.exists() {
        return Ok(());
    }
    let package = package()?;
    // Nobody is to see it half done.
    let half = directory.with_file_name("half");
    let _ = fs::remove_dir_all(&half);
    run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&half))?;
    // Some put it into /usr.
    if !half.join("lib").exists() {
        fs::rename(half.join("usr/lib"), half.join("lib"))?;
    }
    let release = only_entry(&half.join("lib/modules"))?;
    run(Command::new("/sbin/depmod").arg("--basedir").arg(&half).arg(&release))?;
    fs::rename(half, directory)?;
    Ok(())
}

fn only_entry(directory: &Path) -> Result<String> {
    let mut names = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    match (names.next(), names.next()) {
        (Some(Ok(name)), None) => Ok(name.file_name().to_string_lossy().into_owned()),
        _ => bail!("{} should have one entry", directory.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn a_later_release_is_newer() {
        let name = |version| format!("linux-image-{version}-amd64");
        assert!(numbers(&name("6.12.117+deb12")) > numbers(&name("6.12.99+deb12")));
        assert!(numbers(&name("6.1.0-56")) > numbers(&name("6.1.0-9")));
    }
}
