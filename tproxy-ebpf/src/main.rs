//! tproxy's eBPF programs.
//!
//! The way of a packet: an entry point below → `packet` parses it → `ownership` asks whether a socket of ours
//! owns its flow (`cookie`, whether a handshake ends whose beginning is forgotten), and of UDP `memory` whether the flow is
//! known → for a first packet `first` asks the policy, whose
//! questions `tables` answers, and `hold` has user space connect where the upstream is to come first → `ingress` or `egress`
//! carries the verdict out, and `fragments` has the rest of a fragmented packet follow → in the network namespace's listener
//! lookup, `lookup` picks the listener (`entered` and `translation` say how NAT of this host has changed a packet on the
//! way), and where a packet really arrives there, `arrival` remembers what scope `inbound` made of it. Of what the rules
//! were asked about, `trace` tells whoever looks; and `question` is for those who ask about a packet that does not exist.
//!
//! Only built for the bpf target; the policy and the parser live in `tproxy-common`, where they are tested.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod arrival;
#[cfg(target_arch = "bpf")]
mod cookie;
#[cfg(target_arch = "bpf")]
mod egress;
#[cfg(target_arch = "bpf")]
mod entered;
#[cfg(target_arch = "bpf")]
mod first;
#[cfg(target_arch = "bpf")]
mod fragments;
#[cfg(target_arch = "bpf")]
mod hold;
#[cfg(target_arch = "bpf")]
mod ingress;
#[cfg(target_arch = "bpf")]
mod lookup;
#[cfg(target_arch = "bpf")]
mod loopback;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod memory;
#[cfg(target_arch = "bpf")]
mod outcome;
#[cfg(target_arch = "bpf")]
mod ownership;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod question;
#[cfg(target_arch = "bpf")]
mod reject;
#[cfg(target_arch = "bpf")]
mod settings;
#[cfg(target_arch = "bpf")]
mod tables;
#[cfg(target_arch = "bpf")]
mod trace;
#[cfg(target_arch = "bpf")]
mod translation;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("These programs run in the kernel; build them with `cargo xtask build-ebpf`.");
}
