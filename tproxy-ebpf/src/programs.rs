//! Entry points: one a hook, named in `tproxy_common::abi::program`.

use aya_ebpf::{
    macros::{classifier, sk_lookup},
    programs::{SkLookupContext, TcContext},
};

use crate::{
    egress, ingress, lookup,
    packet::{ETHERNET, NO_LINK_LAYER},
};

#[classifier]
pub(crate) fn tproxy_ingress(ctx: TcContext) -> i32 {
    ingress::run(&ctx, ETHERNET)
}

#[classifier]
pub(crate) fn tproxy_ingress_l3(ctx: TcContext) -> i32 {
    ingress::run(&ctx, NO_LINK_LAYER)
}

#[classifier]
pub(crate) fn tproxy_egress(ctx: TcContext) -> i32 {
    egress::run(&ctx, ETHERNET)
}

#[classifier]
pub(crate) fn tproxy_egress_l3(ctx: TcContext) -> i32 {
    egress::run(&ctx, NO_LINK_LAYER)
}

#[classifier]
pub(crate) fn tproxy_lo(ctx: TcContext) -> i32 {
    ingress::run_loopback(&ctx)
}

#[sk_lookup]
pub(crate) fn tproxy_lookup(ctx: SkLookupContext) -> u32 {
    lookup::run(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// tc and `bpf_sk_assign` need a licence that is compatible with the kernel's.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
