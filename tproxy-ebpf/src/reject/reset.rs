//! A SYN is answered with RST by turning it round in place: the kernel itself sends none from an address that is not
//! its own unless a transparent socket does.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM},
    cty::c_long,
    programs::TcContext,
};
use tproxy_common::packet::{Packet, tcp_flag};

use super::TTL;
use crate::packet::{self, ETHERNET, LinkLayer};

const SEQUENCE: usize = 4;
const ACKNOWLEDGEMENT: usize = 8;
const OFFSET_FLAGS_WINDOW: usize = 12;
const CHECKSUM: usize = 16;
const OPTIONS: usize = 20;
/// Four no-operation options.
const NOPS: u32 = 0x0101_0101;

/// 0 when done. External linkage: see `first`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tproxy_turn_round(skb: *mut __sk_buff, link: u32) -> u32 {
    let (ctx, link) = (TcContext::new(skb), LinkLayer(link as usize));
    let turned = packet::read(&ctx, link).is_ok_and(|packet| turn_round(&ctx, link, &packet).is_ok());
    u32::from(!turned)
}

/// Lengths stay as they are (options become NOPs): checksums are then corrected word by word, which holds for
/// computed and for offloaded (`CHECKSUM_PARTIAL`) ones alike.
#[inline(always)]
fn turn_round(ctx: &TcContext, link: LinkLayer, packet: &Packet) -> Result<(), c_long> {
    if link == ETHERNET {
        swap::<6>(ctx, 0)?;
    }
    if packet.tuple.dst.is_v4() {
        swap::<4>(ctx, link.0 + 12)?;
        let [ttl, protocol]: [u8; 2] = ctx.load(link.0 + 8)?;
        let (old, new) = (u16::from_ne_bytes([ttl, protocol]), u16::from_ne_bytes([TTL, protocol]));
        ctx.skb.l3_csum_replace(link.0 + 10, old.into(), new.into(), 2)?;
        ctx.store(link.0 + 8, &new, BPF_F_RECOMPUTE_CSUM.into())?;
    } else {
        swap::<16>(ctx, link.0 + 8)?;
        ctx.store(link.0 + 7, &TTL, BPF_F_RECOMPUTE_CSUM.into())?;
    }
    let l4 = packet.l4 & 0x7fff;
    swap::<2>(ctx, l4)?;
    let sequence: [u8; 4] = ctx.load(l4 + SEQUENCE)?;
    let [offset, ..]: [u8; 4] = ctx.load(l4 + OFFSET_FLAGS_WINDOW)?;
    let acknowledged = u32::from_be_bytes(sequence).wrapping_add(1);
    replace(ctx, l4, SEQUENCE, [0; 4])?;
    replace(ctx, l4, ACKNOWLEDGEMENT, acknowledged.to_be_bytes())?;
    replace(ctx, l4, OFFSET_FLAGS_WINDOW, [offset & 0xf0, tcp_flag::RST | tcp_flag::ACK, 0, 0])?;
    let options_end = (offset >> 4) as usize * 4;
    // A timestamp or MPTCP option would be checked against a connection that never was.
    for word in 0..10 {
        let at = OPTIONS + word * 4;
        if at < options_end {
            replace(ctx, l4, at, NOPS.to_ne_bytes())?;
        }
    }
    Ok(())
}

/// Swaps two neighbouring fields of `N` bytes; sums do not change.
#[inline(always)]
fn swap<const N: usize>(ctx: &TcContext, offset: usize) -> Result<(), c_long> {
    let first: [u8; N] = ctx.load(offset)?;
    let second: [u8; N] = ctx.load(offset + N)?;
    ctx.store(offset, &second, BPF_F_RECOMPUTE_CSUM.into())?;
    ctx.store(offset + N, &first, BPF_F_RECOMPUTE_CSUM.into())
}

/// Replaces a word of the TCP header and corrects the checksum.
#[inline(always)]
fn replace(ctx: &TcContext, l4: usize, at: usize, new: [u8; 4]) -> Result<(), c_long> {
    let old: [u8; 4] = ctx.load(l4 + at)?;
    let (from, to) = (u32::from_ne_bytes(old), u32::from_ne_bytes(new));
    ctx.skb.l4_csum_replace(l4 + CHECKSUM, from.into(), to.into(), 4)?;
    ctx.store(l4 + at, &new, BPF_F_RECOMPUTE_CSUM.into())
}
