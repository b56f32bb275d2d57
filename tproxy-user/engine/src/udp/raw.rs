//! Datagrams to clients by raw sockets: from addresses and ports that no socket of ours could be bound to.

use super::{batch::Run, channel::Sent};
use crate::{
    family::Family,
    flow::{ClientAddr, OriginalDst},
    socket::RawSender,
};

/// The raw socket of each address family.
pub(super) struct RawReplies(pub(super) Vec<(Family, RawSender)>);

impl RawReplies {
    /// Sends each datagram of a run for itself; the kernel puts none together for these sockets.
    pub(super) fn send(&mut self, from: OriginalDst, to: ClientAddr, run: &Run<'_>) -> Sent {
        let mut sent = Sent::default();
        let family = Family::of(to.0.ip());
        let Some((_, sender)) = self.0.iter_mut().find(|(of, _)| *of == family) else { return sent };
        for datagram in run.datagrams() {
            sent.count(1, datagram.len(), sender.send(from, to, run.class, datagram));
        }
        sent
    }
}
