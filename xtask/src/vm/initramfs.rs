//! What a machine boots from: a shell, and the modules with which it mounts the files of this host.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    host,
    process::{output, run},
};

/// The machine's first process.
const INIT: &str = include_str!("init.sh");
/// What it runs before it has this host's files.
const PROGRAMS: &[&str] = &["sh", "mount", "mkdir", "modprobe", "chroot"];
/// The way to this host's files, and a place for what is written over them.
const MODULES: &[&str] = &["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Packs it, and says where it is.
pub(super) fn pack(kernel: &Path, release: &str) -> Result<PathBuf> {
    let archive = kernel.join("initramfs");
    let tree = kernel.join("tree");
    let _ = fs::remove_dir_all(&tree);
    let mut files = BTreeSet::new();
    for name in PROGRAMS {
        let program = host::find(name).with_context(|| format!("{name} is nowhere in PATH"))?;
        files.extend(libraries(&program)?);
        install(&program.canonicalize()?, &tree.join("bin").join(name))?;
    }
    for library in files {
        install(&library.canonicalize()?, &tree.join(library.strip_prefix("/")?))?;
    }
    let modules = Path::new("lib/modules").join(release);
    for file in modules_of(kernel, release)? {
        install(&file, &tree.join(file.strip_prefix(kernel)?))?;
    }
    for entry in fs::read_dir(kernel.join(&modules))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("modules.") {
            install(&entry.path(), &tree.join(&modules).join(entry.file_name()))?;
        }
    }
    let init =
        INIT.replace("@MODULES@", &MODULES.join(" ")).replace("@KERNEL@", &kernel.display().to_string());
    fs::write(tree.join("init"), init)?;
    run(Command::new("chmod").arg("+x").arg(tree.join("init")))?;
    write_archive(&tree, &archive)?;
    fs::remove_dir_all(&tree)?;
    Ok(archive)
}

/// Of a program: what `ldd` finds, the loader included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = output(Command::new("ldd").arg(program))?;
    let paths = listed.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

/// With all that they depend on.
fn modules_of(kernel: &Path, release: &str) -> Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    for module in MODULES {
        let modprobe = host::find("modprobe").context("modprobe is nowhere in PATH")?;
        let listed = output(Command::new(modprobe).arg("--dirname").arg(kernel).args([
            "--set-version",
            release,
            "--show-depends",
            module,
        ]))?;
        // `insmod FILE`, or `builtin NAME`.
        files
            .extend(listed.lines().filter_map(|line| line.trim().strip_prefix("insmod ")).map(PathBuf::from));
    }
    Ok(files)
}

fn install(file: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
    fs::copy(file, to).with_context(|| format!("{} to {}", file.display(), to.display()))?;
    Ok(())
}

fn write_archive(tree: &Path, archive: &Path) -> Result<()> {
    let names = output(Command::new("find").arg(".").current_dir(tree))?;
    let mut cpio = Command::new("cpio")
        .args(["--quiet", "--create", "--format=newc"])
        .current_dir(tree)
        .stdin(Stdio::piped())
        .stdout(fs::File::create(archive)?)
        .spawn()
        .context("cpio")?;
    cpio.stdin.take().context("it was piped")?.write_all(names.as_bytes())?;
    ensure!(cpio.wait()?.success(), "cpio failed");
    Ok(())
}
