//! First packets that the datapath hands over, to be let in once their upstreams are connected.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::maps::{MapData, RingBuf};
use tproxy_common::{
    abi::{Origin, map},
    addr::Addr,
};

use super::{Datapath, DatapathError, leading, take};
use crate::{
    flow::{ClientAddr, OriginalDst},
    generation::RuleNumber,
    tcp::{Syn, SynSource},
};

/// The one reader of them.
struct Ring(RingBuf<MapData>);

impl Datapath {
    /// Where first packets come from; to be asked for once.
    ///
    /// # Errors
    /// When it was asked for before.
    pub fn syns(&mut self) -> Result<Box<dyn SynSource>, DatapathError> {
        Ok(Box::new(Ring(take(&mut self.ebpf, map::SYNS)?)))
    }
}

impl SynSource for Ring {
    fn next(&mut self) -> Option<Syn> {
        loop {
            let item = self.0.next()?;
            if let Some(syn) = read(&item) {
                return Some(syn);
            }
        }
    }

    fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }
}

/// [`HeldSyn`](tproxy_common::abi::HeldSyn), from its bytes.
fn read(bytes: &[u8]) -> Option<Syn> {
    let bytes = &mut &*bytes;
    let (src, dst) = (Addr(leading(bytes)?), Addr(leading(bytes)?));
    let [sport, dport] = [(); 2].map(|()| leading(bytes).map(u16::from_be_bytes));
    let mut word = || leading(bytes).map(u32::from_ne_bytes);
    let [rule, worker, mark, uid, ifindex, device, l3, l4, length] =
        [word()?, word()?, word()?, word()?, word()?, word()?, word()?, word()?, word()?];
    let (link, packet) = bytes.get(..length as usize)?.split_at_checked(l3 as usize)?;
    Some(Syn {
        client: ClientAddr(SocketAddr::new(src.into(), sport?)),
        dst: OriginalDst(SocketAddr::new(dst.into(), dport?)),
        rule: RuleNumber(rule),
        worker,
        origin: Origin { mark, uid, ifindex, device },
        link: link.first_chunk().copied(),
        packet: packet.get(..whole(packet)?)?.to_vec(),
        l4: l4.checked_sub(l3)? as usize,
    })
}

/// What the IP header says; what comes after it is padding.
fn whole(packet: &[u8]) -> Option<usize> {
    let word = |at: usize| Some(usize::from(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?])));
    if packet.first()? >> 4 == 4 { word(2) } else { Some(40 + word(4)?) }
}
