//! NAT of this host, which may send elsewhere what comes in (DNAT, REDIRECT), what is for its own addresses included
//! (published ports).

use std::{fs, io};

use netlink_packet_core::{
    DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlaBuffer, NlasIterator,
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::Netlink;

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN` (nf_tables.h)
const GET_CHAIN: u16 = 10 << 8 | 4;
/// `struct nfgenmsg` (nfnetlink.h)
const HEADER: usize = 4;
/// Attributes of a chain.
const HOOK: u16 = 4;
const USE: u16 = 6;
const TYPE: u16 = 7;
/// Attribute of a hook.
const HOOK_NUMBER: u16 = 1;
/// `NF_INET_PRE_ROUTING`
const PREROUTING: u32 = 0;

/// Whether NAT may change the destination of what comes in: whether a chain of that kind has rules.
pub(crate) fn redirects() -> bool {
    is_in_nft().unwrap_or_else(|error| {
        // No nf_tables, then.
        tracing::debug!(%error, "cannot list the chains of nf_tables");
        false
    }) || is_in_iptables()
}

/// The legacy tables cannot be looked into without their own interface; one that is there was used.
fn is_in_iptables() -> bool {
    let has_nat = |name| {
        let path = format!("/proc/thread-self/net/{name}");
        fs::read_to_string(path).is_ok_and(|tables| tables.lines().any(|table| table == "nat"))
    };
    has_nat("ip_tables_names") || has_nat("ip6_tables_names")
}

fn is_in_nft() -> io::Result<bool> {
    let mut found = false;
    Netlink::open(NETLINK_NETFILTER)?.dump(Chains, |chain: Chain| found |= chain.redirects)?;
    Ok(found)
}

/// Asks for all chains.
#[derive(Clone)]
struct Chains;

impl NetlinkSerializable for Chains {
    fn message_type(&self) -> u16 {
        GET_CHAIN
    }

    fn buffer_len(&self) -> usize {
        HEADER
    }

    fn serialize(&self, buffer: &mut [u8]) {
        // Of any family.
        buffer.fill(0);
    }
}

/// What is asked of a chain.
#[derive(Debug)]
struct Chain {
    redirects: bool,
}

impl NetlinkDeserializable for Chain {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let (mut is_nat, mut hook, mut rules) = (false, None, 0);
        for attribute in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()) {
            let attribute: NlaBuffer<&[u8]> = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                TYPE => is_nat = value.strip_suffix(&[0]).unwrap_or(value) == b"nat",
                HOOK => hook = number(value)?,
                USE => rules = be(value).unwrap_or(0),
                _ => {}
            }
        }
        Ok(Self { redirects: is_nat && hook == Some(PREROUTING) && rules != 0 })
    }
}

/// The number of a hook.
fn number(hook: &[u8]) -> Result<Option<u32>, DecodeError> {
    for attribute in NlasIterator::new(hook) {
        let attribute: NlaBuffer<&[u8]> = attribute?;
        if attribute.kind() == HOOK_NUMBER {
            return Ok(be(attribute.value()));
        }
    }
    Ok(None)
}

fn be(value: &[u8]) -> Option<u32> {
    value.first_chunk().copied().map(u32::from_be_bytes)
}

/// Whether a packet that bears our mark is delivered to a socket of the host's as if it did not, beside rules that deliver what
/// `lo` receives by that mark: neither does its sender seem to be this host then (`fib_validate_source()` asks by the mark, as if
/// from `lo`), nor do the replies bear it.
pub(crate) fn marks_are_harmless<'a>(interfaces: impl IntoIterator<Item = &'a str>) -> bool {
    let is_set = |key: &str| {
        fs::read_to_string(format!("/proc/sys/net/ipv4/{key}")).is_ok_and(|value| value.trim() != "0")
    };
    let mut interfaces = ["all"].into_iter().chain(interfaces);
    !is_set("tcp_fwmark_accept")
        && !is_set("fwmark_reflect")
        && !interfaces.any(|interface| is_set(&format!("conf/{interface}/src_valid_mark")))
}
