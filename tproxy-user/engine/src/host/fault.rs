//! Steps that fail because a test has them fail: what has to heal by itself must be seen to fail first.

use super::{Change, HostError};

/// A step of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// An `ip rule` is added.
    Rule,
    /// A program is attached.
    Attach,
    /// The rules' tables are written.
    Install,
    /// An own address is written down.
    Address,
}

/// Fails if a rule is to be added and that is to fail.
pub(super) fn at(change: &Change) -> Result<(), HostError> {
    match change {
        Change::Rule { .. } | Change::CommonRule { .. } | Change::Way { .. } => check(Step::Rule),
        _ => Ok(()),
    }
}

#[cfg(not(test))]
pub(crate) const fn check(_: Step) -> Result<(), HostError> {
    Ok(())
}

#[cfg(test)]
pub(crate) use injected::{check, inject};

#[cfg(test)]
mod injected {
    use std::{cell::RefCell, io};

    use super::{HostError, Step};

    thread_local! {
        static FAILING: RefCell<Vec<Step>> = const { RefCell::new(Vec::new()) };
    }

    pub(crate) fn check(step: Step) -> Result<(), HostError> {
        if FAILING.with_borrow(|failing| failing.contains(&step)) {
            let source = io::Error::other("a test has it fail");
            return Err(HostError::Netlink { action: format!("{step:?}"), source });
        }
        Ok(())
    }

    /// Has these steps fail in this thread, and all others succeed.
    pub(crate) fn inject(steps: &[Step]) {
        FAILING.set(steps.to_vec());
    }
}
