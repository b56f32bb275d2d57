//! By which way what a socket sends leaves, as far as that does not follow from its addresses.

use std::{num::NonZeroU32, os::fd::AsFd, sync::Once};

use rustix::{
    fs::fchown,
    io::Errno,
    process::{Uid, geteuid},
};
use socket2::{SockRef, Socket};

use super::{SocketError, os, privileged, refused_without};
use crate::mark::Mark;

/// Said once: the rest of the flow is as it should be.
static NOT_PERMITTED: Once = Once::new();

/// What the kernel's routing knows of a socket towards an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Egress {
    /// The instance's mark.
    pub mark: Mark,
    /// The bits of the socket's mark beside ours.
    pub bits: u32,
    /// Whose packets these are, if not this process's.
    pub uid: Option<u32>,
    /// The only interface by which they leave, and by which replies come.
    pub device: Option<NonZeroU32>,
}

impl From<Mark> for Egress {
    /// By the way of this process's own packets.
    fn from(mark: Mark) -> Self {
        Self { mark, bits: 0, uid: None, device: None }
    }
}

impl Egress {
    /// `SO_MARK` of the socket.
    pub(crate) const fn mark(&self) -> u32 {
        self.mark.own() | self.bits & !self.mark.mask()
    }

    /// Sets all but the own mark, for a socket that is not to be known as ours yet.
    pub(super) fn set(&self, socket: &Socket) -> Result<(), SocketError> {
        let bits = self.bits & !self.mark.mask();
        if bits != 0 {
            socket.set_mark(bits).map_err(privileged("SO_MARK"))?;
        }
        if let Some(uid) = self.uid.map(Uid::from_raw).filter(|uid| *uid != geteuid()) {
            // What a socket's file is owned by, routing rules with `uidrange` go by (`sockfs_setattr`).
            match fchown(socket.as_fd(), Some(uid), None) {
                Ok(()) => {}
                Err(Errno::PERM) => NOT_PERMITTED.call_once(|| {
                    tracing::warn!(
                        "without CAP_CHOWN, what is relayed leaves by this process's way where routing rules have another for its client or user"
                    );
                }),
                Err(error) => return Err(os("fchown")(error.into())),
            }
        }
        if self.device.is_some() {
            // It is `SO_BINDTOIFINDEX`, for either family.
            SockRef::from(socket)
                .bind_device_by_index_v4(self.device)
                .map_err(refused_without("CAP_NET_RAW", "SO_BINDTOIFINDEX"))?;
        }
        Ok(())
    }
}
