//! Everything on one CPU.

use std::{fs, io};

use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

use super::memory::tree;

/// Processes that are kept on the first CPU that they may use. Dropping it lets them go.
#[derive(Debug)]
pub(super) struct Pinned {
    threads: Vec<(Pid, CpuSet)>,
}

impl Pinned {
    /// Pins a process, those it started, and all of their threads.
    pub(super) fn process(pid: u32) -> io::Result<Self> {
        let mut pinned = Self { threads: Vec::new() };
        for pid in tree(pid)? {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let id = task?.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
                if let Some(thread) = id {
                    pinned.threads.push((thread, sched_getaffinity(Some(thread))?));
                    sched_setaffinity(Some(thread), &first()?)?;
                }
            }
        }
        Ok(pinned)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        for (thread, before) in &self.threads {
            // Who has ended meanwhile needs no CPU.
            let _ = sched_setaffinity(Some(*thread), before);
        }
    }
}

/// Pins the calling thread for as long as it lives.
pub(super) fn pin_this_thread() -> io::Result<()> {
    Ok(sched_setaffinity(None, &first()?)?)
}

fn first() -> io::Result<CpuSet> {
    let allowed = sched_getaffinity(None)?;
    let mut one = CpuSet::new();
    if let Some(cpu) = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)) {
        one.set(cpu);
    }
    Ok(one)
}
