//! The programs' own log messages, at `-vv`.

use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

use super::{Datapath, DatapathError};

/// Mask of `aya_log_ebpf`: all levels.
pub(super) const EVERYTHING: u8 = u8::MAX;
/// Mask of `aya_log_ebpf`: none; the verifier then removes the code.
pub(super) const NOTHING: u8 = 0;

impl Datapath {
    /// Forwards what the programs log, until the runtime ends. A datapath that was loaded without `verbose` logs nothing.
    ///
    /// # Errors
    /// When the ring buffer cannot be opened.
    pub fn forward_logs(&mut self) -> Result<(), DatapathError> {
        let logger = EbpfLogger::init(&mut self.ebpf).map_err(std::io::Error::other);
        let mut logger = logger.and_then(AsyncFd::new).map_err(DatapathError::Log)?;
        tokio::spawn(async move {
            while let Ok(mut ready) = logger.readable_mut().await {
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
        });
        Ok(())
    }
}
