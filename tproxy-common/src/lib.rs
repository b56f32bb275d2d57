//! What the eBPF programs and user space share: the ABI of the maps, the packet parser and the policy.
#![no_std]

pub mod rule;
