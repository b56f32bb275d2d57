//! A compiler that can build for the bpf target, and its linker.
//!
//! Debian's `rustc-web` with `rust-web-src` is the reference: the committed object comes from it. A nightly of
//! rustup's with the component `rust-src` builds an object that works as well, if not always the same one.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::target_directory;
use crate::{
    host,
    process::{self, output, run},
};

/// Another version may order or choose instructions differently.
const LINKER_VERSION: &str = "0.13.0";

/// Debian's compiler, the sources of `core`, and the lints.
const COMPILER_PACKAGES: &[&str] =
    &["rustc-web", "cargo-web", "rust-web-src", "libstd-rust-web-dev", "rust-web-clippy"];
/// What bpf-linker is built from, for [`LLVM`].
const LINKER_PACKAGES: &[&str] = &["llvm-22-dev", "libstdc++-12-dev", "gcc"];

/// The LLVM of Debian's compiler; the linker reads the compiler's bitcode and has to have the same.
const LLVM: &str = "22";

/// In the compiler's sysroot.
const CLIPPY: &str = "bin/clippy-driver";

/// Programs that fit each other.
pub(super) struct Toolchain {
    sysroot: PathBuf,
    rustc: String,
    linker: PathBuf,
}

impl Toolchain {
    /// What is installed.
    pub(super) fn find() -> Result<Self> {
        match (compiler(), linker()) {
            (Ok((sysroot, rustc)), Ok(linker)) => Ok(Self { sysroot, rustc, linker }),
            (compiler, linker) => {
                let missing: Vec<_> = [compiler.err(), linker.err()].into_iter().flatten().collect();
                let missing = missing.iter().map(|error| format!("\n  {error}")).collect::<String>();
                bail!(
                    "cannot build for the bpf target:{missing}\non Debian, `cargo xtask build-ebpf --install` (as root) installs it"
                )
            }
        }
    }

    /// What is installed, and what is not is installed first: Debian packages, and the linker from its source.
    pub(super) fn find_or_install() -> Result<Self> {
        if !compiler().is_ok_and(|(sysroot, _)| sysroot.join(CLIPPY).exists()) {
            host::install(COMPILER_PACKAGES)?;
        }
        if linker().is_err() {
            host::install(LINKER_PACKAGES)?;
            run(process::cargo()
                .args(["install", "bpf-linker", "--locked", "--no-default-features"])
                .args(["--version", LINKER_VERSION, "--features", &format!("llvm-{LLVM}")])
                .arg("--root")
                .arg(tools_directory()?)
                .env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}")))?;
        }
        Self::find()
    }

    /// Compiler and linker with their versions, in one line.
    pub(super) fn describe(&self) -> String {
        format!("{}, bpf-linker {LINKER_VERSION}", self.rustc)
    }

    /// Where the compiler has its libraries and sources.
    pub(super) fn sysroot(&self) -> &Path {
        &self.sysroot
    }

    /// For `-C linker`.
    pub(super) fn linker(&self) -> std::path::Display<'_> {
        self.linker.display()
    }

    /// The toolchain's cargo, in an environment that no other toolchain or wrapper gets in through.
    pub(super) fn cargo(&self) -> Command {
        let bin = self.sysroot.join("bin");
        let mut cargo = Command::new(bin.join("cargo"));
        cargo.env("RUSTC", bin.join("rustc"));
        // `build-std` is unstable, and a distribution's compiler takes unstable options only when told so.
        cargo.env("RUSTC_BOOTSTRAP", "1");
        for name in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "RUSTUP_TOOLCHAIN", "RUSTDOC"] {
            cargo.env_remove(name);
        }
        cargo
    }

    /// The toolchain's clippy.
    pub(super) fn clippy(&self) -> Result<PathBuf> {
        let driver = self.sysroot.join(CLIPPY);
        if !driver.exists() {
            bail!(
                "{} is missing (Debian package rust-web-clippy, or rustup's component clippy)",
                driver.display()
            );
        }
        Ok(driver)
    }
}

/// Sysroot and version of the first compiler that brings the sources of `core`.
fn compiler() -> Result<(PathBuf, String)> {
    let nightly = output(Command::new("rustup").args(["run", "nightly", "rustc", "--print=sysroot"]));
    let nightly = nightly.map(|sysroot| PathBuf::from(sysroot.trim_end()));
    for sysroot in [PathBuf::from("/usr")].into_iter().chain(nightly) {
        let rustc = sysroot.join("bin/rustc");
        if rustc.exists()
            && sysroot.join("bin/cargo").exists()
            && sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
        {
            return Ok((sysroot, version(&rustc)?));
        }
    }
    bail!(
        "no compiler with the sources of `core`: neither Debian's {} nor a nightly of rustup's with rust-src",
        COMPILER_PACKAGES.join(" ")
    )
}

/// `rustc 1.96.0, LLVM 22.1.8`
fn version(rustc: &Path) -> Result<String> {
    let verbose = output(Command::new(rustc).arg("-vV"))?;
    let field = |name: &str| {
        verbose
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .with_context(|| format!("no {name} in {verbose}"))
    };
    Ok(format!("rustc {}, LLVM {}", field("release: ")?, field("LLVM version: ")?))
}

/// The linker we installed, or the one in `PATH`.
fn linker() -> Result<PathBuf> {
    let ours = tools_directory()?.join("bin/bpf-linker");
    let found = ours.exists().then_some(ours).or_else(|| host::find("bpf-linker"));
    let Some(linker) = found else {
        bail!("no bpf-linker: `cargo install bpf-linker --version {LINKER_VERSION}`");
    };
    let version = output(Command::new(&linker).arg("--version"))?;
    if version.trim_end() != format!("bpf-linker {LINKER_VERSION}") {
        bail!("{} is {}, wanted is {LINKER_VERSION}", linker.display(), version.trim_end());
    }
    Ok(linker)
}

/// Goes with `cargo clean`, and leaves the user's own programs alone.
fn tools_directory() -> Result<PathBuf> {
    Ok(target_directory()?.join("tools"))
}
