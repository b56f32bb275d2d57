//! Descriptors that are no sockets, in the runtime.

use std::{io, os::fd::OwnedFd, sync::Arc};

use tokio::io::{
    Interest,
    unix::{AsyncFd, AsyncFdReadyGuard},
};

/// A descriptor that the runtime watches for being readable.
pub struct ReadableFd(AsyncFd<Arc<OwnedFd>>);

impl ReadableFd {
    /// To be called inside a runtime.
    ///
    /// # Errors
    /// When the descriptor cannot be watched.
    pub fn new(descriptor: Arc<OwnedFd>) -> io::Result<Self> {
        // SAFETY: the `Arc` keeps the descriptor open as long as it is registered, and nothing here replaces it:
        // the `AsyncFd` is never handed out, but by shared reference.
        Ok(Self(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?))
    }

    /// The descriptor.
    #[must_use]
    pub fn descriptor(&self) -> &Arc<OwnedFd> {
        self.0.get_ref()
    }

    /// Waits until it is readable, or may be: it is the caller who finds out that it is no more, and clears it.
    ///
    /// # Errors
    /// When the runtime has ended.
    pub async fn ready(&self) -> io::Result<AsyncFdReadyGuard<'_, Arc<OwnedFd>>> {
        self.0.readable().await
    }
}
