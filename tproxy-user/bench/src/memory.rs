//! User-space memory of processes.

use std::{collections::BTreeMap, fs, io};

/// A process and all that descend from it.
pub(super) fn tree(root: u32) -> io::Result<Vec<u32>> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // It may have ended since the directory was read.
        if let Some(parent) = fs::read_to_string(format!("/proc/{pid}/stat")).ok().as_deref().and_then(parent)
        {
            parents.insert(pid, parent);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        found.extend(parents.iter().filter(|(_, parent)| **parent == pid).map(|(child, _)| *child));
        next += 1;
    }
    Ok(found)
}

/// The fourth field of `/proc/PID/stat`, proc(5); the second may contain anything, in parentheses.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The anonymous memory of a process and all that descend from it, in bytes; what they share counts once.
/// Pages of files are left out: how many of them are a process's own depends on who else runs the same program.
pub(super) fn of(root: u32) -> io::Result<u64> {
    let mut total = 0;
    for pid in tree(root)? {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        total += anonymous(&text).ok_or(io::ErrorKind::InvalidData)?;
    }
    Ok(total)
}

fn anonymous(rollup: &str) -> Option<u64> {
    let kilobytes = rollup.lines().find_map(|line| line.strip_prefix("Pss_Anon:"))?;
    Some(kilobytes.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_proc_are_read() {
        assert_eq!(parent("12 (a ) b) S 7 12 0"), Some(7));
        assert_eq!(
            anonymous("head\nRss:  10 kB\nPss:               7 kB\nPss_Anon:          3 kB\n"),
            Some(3072)
        );
        assert!(of(std::process::id()).unwrap() > 100_000);
    }
}
