//! Links that outlive the process: each has a name in the BPF file system.

use std::{
    collections::BTreeSet,
    mem,
    path::{Path, PathBuf},
};

use aya::programs::{links::FdLink, tc::SchedClassifierLink};

use super::{Datapath, DatapathError};
use crate::host::{Direction, pins};

impl Datapath {
    /// From now on programs stay attached when the process is gone, and reject what a rule selects where nobody takes it.
    /// Those that another datapath left in `directory` are replaced one by one: each hook has the old program or this
    /// one at any moment.
    ///
    /// # Errors
    /// When the BPF file system refuses.
    pub fn outlive(&mut self, directory: &Path) -> Result<(), DatapathError> {
        self.state.rejecting = 1;
        self.publish()?;
        let left: BTreeSet<PathBuf> = pins::list(directory)?.into_iter().collect();
        let mut ours = BTreeSet::new();
        for ((ifindex, hook), (link, attached)) in mem::take(&mut self.links.0) {
            let attached = pin_hook(directory, ifindex, hook, attached)?;
            ours.insert(hook_pin(directory, ifindex, hook));
            self.links.0.insert((ifindex, hook), (link, attached));
        }
        if let Some(lookup) = self.lookup.take() {
            let name = directory.join(LOOKUP);
            self.lookup = Some(pin(&name, lookup)?);
            ours.insert(name);
        }
        self.pins = Some(directory.to_owned());
        left.difference(&ours).try_for_each(|pin| pins::remove_one(pin))?;
        Ok(())
    }
}

const LOOKUP: &str = "lookup";

pub(super) fn pin_hook(
    directory: &Path,
    ifindex: u32,
    hook: Direction,
    attached: SchedClassifierLink,
) -> Result<SchedClassifierLink, DatapathError> {
    let link = FdLink::try_from(attached).expect("only tcx, whose links are descriptors, gets here");
    let link = pin(&hook_pin(directory, ifindex, hook), link)?;
    Ok(link.try_into().expect("it was such a link"))
}

pub(super) fn unpin_hook(directory: &Path, ifindex: u32, hook: Direction) -> Result<(), DatapathError> {
    Ok(pins::remove_one(&hook_pin(directory, ifindex, hook))?)
}

fn hook_pin(directory: &Path, ifindex: u32, hook: Direction) -> PathBuf {
    directory.join(format!("{ifindex}-{hook}"))
}

/// Pins a link under a name that may be taken.
fn pin(name: &Path, link: FdLink) -> Result<FdLink, DatapathError> {
    // The BPF file system has no dots in names.
    let new = name.with_file_name("new");
    pins::remove_one(&new)?;
    let pinned = link.pin(&new).map_err(|source| DatapathError::Pin { pin: name.to_owned(), source })?;
    pins::replace(&new, name)?;
    Ok(pinned.into())
}
