//! Packets that do not exist: somebody asks by `BPF_PROG_TEST_RUN` what would become of one. The question is in `skb->cb`,
//! and so is the answer (`tproxy_common::abi::question`).

use aya_ebpf::programs::TcContext;
use tproxy_common::{
    abi::question::{ANSWERED, ASKED, RULE, UID_OR_REASON, WORKER},
    rule::RuleIndex,
};

/// A word of `skb->cb`: volatile, because the verifier takes context accesses at constant offsets only.
macro_rules! word {
    ($ctx:expr, $index:expr) => {
        (&raw mut (*$ctx.skb.skb).cb[$index])
    };
}

/// Whether the packet is a question.
#[inline(always)]
pub(crate) fn is_asked(ctx: &TcContext) -> bool {
    // SAFETY: the context outlives the program's run, and the accesses are checked by the verifier.
    unsafe { word!(ctx, 0).read_volatile() == ASKED[0] && word!(ctx, 1).read_volatile() == ASKED[1] }
}

/// The sender's user id in a question.
#[inline(always)]
pub(crate) fn uid(ctx: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { word!(ctx, UID_OR_REASON).read_volatile() }
}

/// Says which worker would receive the flow.
#[inline(always)]
pub(crate) fn note_worker(ctx: &TcContext, worker: u32) {
    // SAFETY: as above.
    unsafe { word!(ctx, WORKER).write_volatile(worker) }
}

/// Answers.
#[inline(always)]
pub(crate) fn answer(ctx: &TcContext, reason: u32, rule: RuleIndex) {
    // SAFETY: as above.
    unsafe {
        word!(ctx, 0).write_volatile(ANSWERED);
        word!(ctx, UID_OR_REASON).write_volatile(reason);
        word!(ctx, RULE).write_volatile(rule);
    }
}
