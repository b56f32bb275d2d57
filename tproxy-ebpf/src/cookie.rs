//! SYN cookies: the last segment of a handshake may be all that there is of it, once what was decided at the first has been
//! forgotten in a flood. The kernel knows its own cookies: whoever answers to one of them had it from a listener of ours, to
//! which a rule gave the first packet. Which rule that was, user space finds out where the connection is accepted.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::bpf_tcp_check_syncookie,
    programs::TcContext,
};
use tproxy_common::{
    abi::FORGOTTEN,
    flow::{Protocol, Tuple},
    packet::{Packet, tcp_flag},
    rule::Scope,
};

use crate::{
    hold, maps,
    ownership::{Socket, family, worker_of_connection},
};

/// Whether a segment is the end of a handshake, by its cookie; then it is noted that the flow was decided. Where no listener of
/// ours has sent a cookie within the last two minutes, the kernel says so at once (`tcp_synq_no_recent_overflow()`).
#[inline(always)]
pub(crate) fn is_answered(ctx: &TcContext, scope: Scope, parsed: &Packet) -> bool {
    // This CPU's, as at the first packet: a client's packets come in on one CPU, and in a flood that others have a part of, all
    // of them send cookies.
    let worker = worker_of_connection();
    let is_answered = tproxy_cookie(ctx.skb.skb, &parsed.tuple, parsed.l4 as u32, worker) != 0;
    if is_answered {
        maps::decided(&parsed.tuple, FORGOTTEN, worker, &hold::origin(scope, ctx));
    }
    is_answered
}

/// As much of the headers as the kernel looks at (`__cookie_v4_check`, `__cookie_v6_check`).
#[repr(C, align(4))]
struct Headers {
    ip: [u8; 40],
    tcp: [u8; 20],
}

impl Headers {
    #[inline(always)]
    fn of(tuple: &Tuple, numbers: [u8; 8]) -> Self {
        const WORDS: u8 = 5;
        let (mut ip, mut tcp) = ([0; 40], [0; 20]);
        if tuple.dst.is_v4() {
            ip[0] = 0x40 | WORDS;
            ip[12..16].copy_from_slice(&tuple.src.v4());
            ip[16..20].copy_from_slice(&tuple.dst.v4());
        } else {
            ip[0] = 0x60;
            ip[8..24].copy_from_slice(&tuple.src.0);
            ip[24..40].copy_from_slice(&tuple.dst.0);
        }
        tcp[..2].copy_from_slice(&tuple.sport);
        tcp[2..4].copy_from_slice(&tuple.dport);
        tcp[4..12].copy_from_slice(&numbers);
        tcp[12] = WORDS << 4;
        tcp[13] = tcp_flag::ACK;
        Self { ip, tcp }
    }

    /// Whether a listener has sent the cookie that they answer to.
    #[inline(always)]
    fn answer_to(&mut self, listener: *mut bpf_sock) -> bool {
        let (ip, tcp) = (self.ip.as_mut_ptr().cast(), self.tcp.as_mut_ptr().cast());
        // SAFETY: the listener is referred to, and the pointers are to memory of these lengths.
        unsafe { bpf_tcp_check_syncookie(listener.cast(), ip, 40, tcp, 20) == 0 }
    }
}

/// External linkage has the verifier check this function once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_cookie(skb: *mut __sk_buff, tuple: *const Tuple, l4: u32, worker: u32) -> u32 {
    /// Of the sequence number, from the header's start; the acknowledgement follows it.
    const SEQUENCE: usize = 4;
    // SAFETY: the one caller hands over a reference; the verifier asks for the comparison with null.
    let Some(tuple) = (unsafe { tuple.as_ref() }) else { return 0 };
    let Ok(numbers) = TcContext::new(skb).load(l4 as usize + SEQUENCE) else { return 0 };
    let mut headers = Headers::of(tuple, numbers);
    let Some(listener) = Socket::listener(worker, Protocol::Tcp, family(&tuple.dst)) else { return 0 };
    u32::from(headers.answer_to(listener.as_ptr()))
}
