//! Parts of the kernel that may be modules: whether they are there, or can be loaded. Nothing is loaded.

use std::{fs, path::Path};

/// Where a part of the kernel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// Built in, loaded, or in a file that can be loaded.
    Present,
    /// The kernel's modules are here, and it is none of them; or none can be loaded any more.
    Missing,
    /// The modules are not here, as in a container.
    Unknown,
}

/// The module of this name.
pub(super) fn find(name: &str) -> Presence {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let locked =
        fs::read_to_string("/proc/sys/kernel/modules_disabled").is_ok_and(|value| value.trim() == "1");
    if Path::new("/sys/module").join(name).exists() {
        return Presence::Present;
    }
    find_in(&Path::new("/lib/modules").join(release), name, locked)
}

fn find_in(modules: &Path, name: &str, locked: bool) -> Presence {
    let list = |file| fs::read_to_string(modules.join(file)).unwrap_or_default();
    let file = format!("/{name}.ko");
    if list("modules.builtin").lines().any(|path| path.ends_with(&file)) {
        return Presence::Present;
    }
    let dependencies = list("modules.dep");
    if dependencies.is_empty() {
        return Presence::Unknown;
    }
    let paths = dependencies.lines().filter_map(|line| Some(line.split_once(':')?.0));
    // It may be compressed: .ko.xz, .ko.zst.
    let found = paths.filter(|path| path.contains(&file)).any(|path| modules.join(path).exists());
    if found && !locked { Presence::Present } else { Presence::Missing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_built_in_or_in_a_file_that_can_be_loaded() {
        let directory = std::env::temp_dir().join(format!("tproxy-modules-{}", std::process::id()));
        fs::create_dir_all(directory.join("kernel/net/sched")).unwrap();
        assert_eq!(find_in(&directory, "cls_bpf", false), Presence::Unknown);
        fs::write(directory.join("modules.builtin"), "kernel/net/sched/sch_fq.ko\n").unwrap();
        let dependencies =
            "kernel/net/sched/cls_bpf.ko.xz:\nkernel/net/sched/sch_ingress.ko.xz: kernel/a.ko.xz\n";
        fs::write(directory.join("modules.dep"), dependencies).unwrap();
        fs::write(directory.join("kernel/net/sched/cls_bpf.ko.xz"), "").unwrap();
        assert_eq!(find_in(&directory, "sch_fq", true), Presence::Present);
        assert_eq!(find_in(&directory, "cls_bpf", false), Presence::Present);
        assert_eq!(find_in(&directory, "cls_bpf", true), Presence::Missing);
        assert_eq!(find_in(&directory, "sch_ingress", false), Presence::Missing);
        assert_eq!(find_in(&directory, "cls_other", false), Presence::Missing);
        fs::remove_dir_all(directory).unwrap();
    }
}
