//! Entry points: one a hook, named in `tproxy_common::abi::program`, each a table from what is found out about a packet to
//! what is done with it.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT},
    macros::{classifier, sk_lookup, sk_reuseport},
    programs::{SkLookupContext, SkReuseportContext, TcContext},
};
use tproxy_common::{rule::Scope, verdict::Reason};

use crate::{
    arrival, egress,
    first::ask_if_first,
    ingress, lookup, loopback,
    maps::count,
    outcome::{Course, NEXT, settle},
    packet::{ETHERNET, LinkLayer, Meta, NO_LINK_LAYER},
    reject,
};

#[classifier]
pub(crate) fn tproxy_ingress(ctx: TcContext) -> i32 {
    on_ingress(&ctx, ETHERNET)
}

#[classifier]
pub(crate) fn tproxy_ingress_l3(ctx: TcContext) -> i32 {
    on_ingress(&ctx, NO_LINK_LAYER)
}

#[classifier]
pub(crate) fn tproxy_egress(ctx: TcContext) -> i32 {
    on_egress(&ctx, ETHERNET)
}

#[classifier]
pub(crate) fn tproxy_egress_l3(ctx: TcContext) -> i32 {
    on_egress(&ctx, NO_LINK_LAYER)
}

#[inline(always)]
fn on_ingress(ctx: &TcContext, link: LinkLayer) -> i32 {
    if ingress::is_of_others(ctx, link) {
        count(Reason::NotOurs);
        return NEXT;
    }
    match settle(ctx, ask_if_first(ctx, link, Scope::Forwarded, ingress::known(ctx, link))) {
        Course::Deliver => ingress::steer(ctx),
        Course::Reset => reject::answer(ctx, link, reject::tproxy_turn_round, 0),
        Course::Unreachable => reject::answer(ctx, link, reject::tproxy_unreachable, 0),
        Course::Next => NEXT,
        Course::Shot | Course::Hold => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn on_egress(ctx: &TcContext, link: LinkLayer) -> i32 {
    if egress::is_of_others(ctx, link) {
        count(Reason::NotOurs);
        return NEXT;
    }
    match settle(ctx, ask_if_first(ctx, link, Scope::Outbound, egress::known(ctx, link))) {
        Course::Deliver | Course::Hold => egress::redirect_to_lo(ctx, link),
        Course::Reset => reject::answer(ctx, link, reject::tproxy_turn_round, BPF_F_INGRESS),
        Course::Unreachable => reject::answer(ctx, link, reject::tproxy_unreachable, BPF_F_INGRESS),
        Course::Next => NEXT,
        Course::Shot => TC_ACT_SHOT,
    }
}

#[classifier]
pub(crate) fn tproxy_lo(ctx: TcContext) -> i32 {
    loopback::run(&ctx)
}

#[classifier]
pub(crate) fn tproxy_inject(ctx: TcContext) -> i32 {
    match ctx.clone_redirect(Meta::of(&ctx).ifindex, BPF_F_INGRESS.into()) {
        Ok(()) => NEXT,
        Err(_) => TC_ACT_SHOT,
    }
}

#[sk_lookup]
pub(crate) fn tproxy_lookup(ctx: SkLookupContext) -> u32 {
    lookup::run(&ctx)
}

#[sk_reuseport]
pub(crate) fn tproxy_arrival(ctx: SkReuseportContext) -> u32 {
    arrival::run(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// tc and `bpf_sk_assign` need a licence that is compatible with the kernel's.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
