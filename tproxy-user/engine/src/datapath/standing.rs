//! Whether what was attached still is: whoever may attach may also detach (`bpftool link detach`, `tc qdisc del`).

use std::{
    fs,
    hash::{Hash as _, Hasher},
    io,
};

use aya::programs::{
    links::{FdLink, Link as _},
    tc::SchedClassifierLink,
};

use super::{Datapath, DatapathError};
use crate::host::{Direction, clsact, links::Link};

impl Datapath {
    /// Gives up what somebody else has detached, and says what that was: it can be attached anew.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn give_up_detached(&mut self) -> Result<Vec<(Link, Direction)>, DatapathError> {
        let mark = self.settings.mark;
        let is_attached = |link: &Link, hook, attached: &SchedClassifierLink| match attached.try_into() {
            Ok(link) => is_attached_to(link, "ifindex:"),
            // What cannot be found out is taken for the rule.
            Err(_) => clsact::has_filter(link.index, hook, mark).unwrap_or(true),
        };
        let attached = self.links.0.iter();
        let lost: Vec<_> = attached
            .filter(|((_, hook), (link, attached))| !is_attached(link, *hook, attached))
            .map(|((_, hook), (link, _))| (link.clone(), *hook))
            .collect();
        for (link, hook) in &lost {
            self.detach_from(link.index, *hook)?;
        }
        Ok(lost)
    }

    /// Whether the listener lookup is attached.
    #[must_use]
    pub fn looks_up(&self) -> bool {
        self.lookup.as_ref().is_some_and(|link| is_attached_to(link, "netns_ino:"))
    }
}

#[cfg(test)]
impl Datapath {
    /// The kernel's numbers of all links.
    pub(crate) fn link_ids(&self) -> Vec<u32> {
        let hooks = self.links.0.values().filter_map(|(_, attached)| attached.try_into().ok());
        hooks.chain(&self.lookup).map(|link: &FdLink| link.info().unwrap().id()).collect()
    }
}

/// Whether a link leads anywhere: what has been detached names 0 (`bpf_tcx_link_show_fdinfo()`,
/// `bpf_netns_link_show_fdinfo()`).
fn is_attached_to(link: &FdLink, key: &str) -> bool {
    let target = || -> io::Result<Option<u64>> {
        let text = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", descriptor(link)))?;
        Ok(text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok()))
    };
    // What cannot be found out is taken for the rule.
    target().ok().flatten().is_none_or(|target| target != 0)
}

/// aya keeps the descriptor of a link to itself, but its identity is the descriptor's number.
fn descriptor(link: &FdLink) -> i32 {
    struct Number(i32);
    impl Hasher for Number {
        fn write_i32(&mut self, number: i32) {
            self.0 = number;
        }

        fn write(&mut self, _: &[u8]) {}

        fn finish(&self) -> u64 {
            self.0 as u64
        }
    }
    let mut number = Number(-1);
    link.id().hash(&mut number);
    number.0
}
