//! What tproxy's eBPF programs and user space share: the layout of the maps ([`abi`]), the packet parser
//! ([`packet`]), and the policy ([`policy`]), which is the same code in the kernel and in tests.
//!
//! Addresses are IPv4-mapped IPv6 and, like ports, big-endian byte arrays, so that a key has one spelling.
#![no_std]

pub mod abi;
pub mod addr;
pub mod capacity;
pub mod defaults;
pub mod flow;
pub mod packet;
pub mod policy;
pub mod rule;
pub mod verdict;
