//! Datagrams that the kernel gave to another client's session.
//!
//! While a socket is being connected, a look-up on another CPU may have found it when it was only bound, for it to be
//! connected when the look-up asks whether it is (`__udp4_lib_lookup` does so after `compute_score`, without a lock). Such a
//! datagram has to go where it would have gone by the listener. It is rare enough to be copied.

use super::batch::Run;
use crate::{
    flow::{ClientAddr, OriginalDst},
    socket::{Datagram, Pieces, TrafficClass},
};

/// A copy of one of them.
pub(super) struct Stray {
    client: ClientAddr,
    dst: OriginalDst,
    class: TrafficClass,
    pieces: Pieces,
    ttl: u8,
    payload: Box<[u8]>,
}

impl Stray {
    /// A datagram of `run`, which is for `dst`.
    pub(super) fn new(run: &Run<'_>, dst: OriginalDst, ttl: u8, payload: &[u8]) -> Self {
        Self {
            client: ClientAddr(run.from),
            dst,
            class: run.class,
            pieces: run.pieces,
            ttl,
            payload: payload.into(),
        }
    }

    /// As it would have come by the listener.
    pub(super) fn as_datagram(&self) -> Datagram<'_> {
        let Self { client, dst, class, pieces, ttl, ref payload } = *self;
        Datagram { client, dst, class, pieces, ttl, payload }
    }
}
