//! The programs' own log messages, at `-vv`.

use std::{io, thread};

use aya_log::EbpfLogger;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::retry_on_intr,
};

use super::{Datapath, DatapathError};

/// Mask of `aya_log_ebpf`: all levels.
pub(super) const EVERYTHING: u8 = u8::MAX;
/// Mask of `aya_log_ebpf`: none; the verifier then removes the code.
pub(super) const NOTHING: u8 = 0;

impl Datapath {
    /// Forwards what the programs log to the `log` facade, on a thread of its own until the process ends. A datapath
    /// that was loaded without `verbose` logs nothing.
    ///
    /// # Errors
    /// When the ring buffer cannot be opened or the thread not started.
    pub fn forward_logs(&mut self) -> Result<(), DatapathError> {
        let mut logger =
            EbpfLogger::init(&mut self.ebpf).map_err(|error| DatapathError::Log(io::Error::other(error)))?;
        let forward = move || {
            while retry_on_intr(|| poll(&mut [PollFd::new(&logger, PollFlags::IN)], None)).is_ok() {
                logger.flush();
            }
        };
        thread::Builder::new().name("tproxy-log".into()).spawn(forward).map_err(DatapathError::Log)?;
        Ok(())
    }
}
