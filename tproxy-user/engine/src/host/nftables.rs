//! What the kernel says of nftables, which is what nft and iptables-nft have made.

use std::io;

use netlink_packet_core::{
    DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlaBuffer, NlasIterator,
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{HostError, netlink::Netlink};

/// linux/netfilter/nfnetlink.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// `struct nfgenmsg` (linux/netfilter/nfnetlink.h)
const NFGENMSG: usize = 4;

/// A question that says no more than its kind: `enum nf_tables_msg_types` (linux/netfilter/nf_tables.h).
#[derive(Debug, Clone, Copy)]
#[repr(u16)]
enum Question {
    Chains = 4,
    Generation = 16,
}

impl NetlinkSerializable for Question {
    fn message_type(&self) -> u16 {
        NFNL_SUBSYS_NFTABLES << 8 | *self as u16
    }

    fn buffer_len(&self) -> usize {
        NFGENMSG
    }

    fn serialize(&self, buffer: &mut [u8]) {
        // AF_UNSPEC, NFNETLINK_V0
        buffer.fill(0);
    }
}

/// A number that is another one after any change of what nft and iptables-nft have in this network namespace.
///
/// # Errors
/// [`HostError::Netlink`] where the kernel has no nftables.
pub fn generation() -> Result<u32, HostError> {
    let ask = || Netlink::open(NETLINK_NETFILTER)?.get::<_, RulesetGeneration>(Question::Generation);
    match ask() {
        Ok(Some(RulesetGeneration(number))) => Ok(number),
        Ok(None) => Ok(0),
        Err(source) => {
            Err(HostError::Netlink { action: "ask for the generation of nftables".into(), source })
        }
    }
}

/// Whether one of all chains is of this type, at this hook, and not empty.
pub(super) fn has_rules_in(kind: &str, hook: u32) -> io::Result<bool> {
    let mut found = false;
    Netlink::open(NETLINK_NETFILTER)?.dump(Question::Chains, |chain: Chain| {
        found |= chain.kind == kind.as_bytes() && chain.hook == Some(hook) && chain.uses != 0;
    })?;
    Ok(found)
}

#[derive(Debug)]
struct RulesetGeneration(u32);

impl NetlinkDeserializable for RulesetGeneration {
    type Error = io::Error;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        /// Length and type of an attribute, and the number (`NFTA_GEN_ID`), which comes first.
        const BEFORE: usize = NFGENMSG + 4;
        Ok(Self(payload.get(BEFORE..).and_then(be).ok_or(io::ErrorKind::InvalidData)?))
    }
}

/// What is asked of a chain: `enum nft_chain_attributes`.
#[derive(Debug, Default)]
struct Chain {
    kind: Vec<u8>,
    hook: Option<u32>,
    /// Its rules, and the jumps to it.
    uses: u32,
}

impl NetlinkDeserializable for Chain {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        const HOOK: u16 = 4;
        const USE: u16 = 6;
        const TYPE: u16 = 7;
        let mut chain = Self::default();
        for attribute in NlasIterator::new(payload.get(NFGENMSG..).unwrap_or_default()) {
            let attribute: NlaBuffer<&[u8]> = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                HOOK => chain.hook = number_of_hook(value)?,
                USE => chain.uses = be(value).unwrap_or_default(),
                TYPE => chain.kind = value.strip_suffix(&[0]).unwrap_or(value).to_vec(),
                _ => {}
            }
        }
        Ok(chain)
    }
}

/// `enum nft_hook_attributes`
fn number_of_hook(hook: &[u8]) -> Result<Option<u32>, DecodeError> {
    const NUMBER: u16 = 1;
    for attribute in NlasIterator::new(hook) {
        let attribute: NlaBuffer<&[u8]> = attribute?;
        if attribute.kind() == NUMBER {
            return Ok(be(attribute.value()));
        }
    }
    Ok(None)
}

fn be(value: &[u8]) -> Option<u32> {
    value.first_chunk().copied().map(u32::from_be_bytes)
}
