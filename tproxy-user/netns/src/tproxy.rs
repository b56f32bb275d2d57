//! A running `tproxy`.

use std::{ops::Deref, ops::DerefMut, path::Path, time::Duration};

use rustix::process::Signal;

use super::{Error, Namespace, PATIENCE, Proc};

/// `tproxy run` in a namespace, with steering in place.
#[derive(Debug)]
pub struct Tproxy(Proc);

impl Tproxy {
    /// Starts `binary run ARGS` (split at blanks) and waits for the line that says `ready`.
    ///
    /// # Errors
    /// It ends, or [`PATIENCE`] passes, without that line.
    pub fn start(namespace: &Namespace, binary: &Path, args: &str) -> Result<Self, Error> {
        let proc = namespace.start(&format!("{} run {args}", binary.display()))?;
        proc.wait_line(&["ready"], PATIENCE)?;
        Ok(Self(proc))
    }
}

/// One that was started in another way, and is to be stopped in order.
impl From<Proc> for Tproxy {
    fn from(proc: Proc) -> Self {
        Self(proc)
    }
}

impl Deref for Tproxy {
    type Target = Proc;

    fn deref(&self) -> &Proc {
        &self.0
    }
}

impl DerefMut for Tproxy {
    fn deref_mut(&mut self) -> &mut Proc {
        &mut self.0
    }
}

impl Drop for Tproxy {
    /// The orderly way, so that no journal is left; the guard below kills what does not follow.
    fn drop(&mut self) {
        self.0.signal(Signal::TERM);
        if self.0.wait(Duration::from_millis(500)).is_err() {
            self.0.signal(Signal::TERM);
            if let Err(error) = self.0.wait(PATIENCE) {
                tracing::warn!("{error}");
            }
        }
    }
}
