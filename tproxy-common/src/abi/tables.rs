//! The rule tables.

use super::SLOTS;
use crate::{
    addr::Addr,
    flow::Protocol,
    rule::{RuleIndex, Scope, SetId},
};

/// A set of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct PortBits([u64; 1024]);

impl PortBits {
    /// None.
    pub const NONE: Self = Self([0; 1024]);
    /// All of them.
    pub const ALL: Self = Self([u64::MAX; 1024]);

    /// Whether it has a port.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, port: u16) -> bool {
        self.0[(port >> 6) as usize] & 1 << (port & 63) != 0
    }

    /// Adds a port.
    pub const fn add(&mut self, port: u16) {
        self.0[(port >> 6) as usize] |= 1 << (port & 63);
    }

    /// Adds those of another set.
    pub fn merge(&mut self, other: &Self) {
        for (own, others) in self.0.iter_mut().zip(&other.0) {
            *own |= others;
        }
    }
}

/// An address within a slot of the rule tables, the data of an LPM key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SlotAddr {
    /// Big-endian, because an LPM trie matches from the first bit on.
    pub slot: [u8; 4],
    /// The address or the prefix's first address.
    pub addr: Addr,
}

/// Bits of [`SlotAddr::slot`], to be added to the length of a prefix.
pub const SLOT_BITS: u32 = 32;

/// A number within a slot: an interface index or a user id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SlotKey {
    /// Slot of the rule tables.
    pub slot: u32,
    /// Host byte order.
    pub number: u32,
}

/// A cgroup within a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct CgroupKey {
    /// The cgroup's id: the inode number of its directory.
    pub id: u64,
    /// Slot of the rule tables.
    pub slot: u64,
}

/// A set that stands for "this dimension says nothing": rules that do not restrict it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Unrestricted {
    /// Rules for any port.
    Port = 0,
    /// Rules for any interface.
    Interface = 1,
    /// Rules for any user id.
    Uid = 2,
    /// Rules for any cgroup.
    Cgroup = 3,
}

/// The set of the rules of a scope and protocol. Ids below [`FIRST_FREE_SET`] have fixed meanings.
#[inline(always)]
#[must_use]
pub const fn scope_set(scope: Scope, protocol: Protocol) -> SetId {
    4 + scope as u32 * 2 + protocol as u32
}

/// The set of the rules whose flows must not get by: whatever they do, it is not what the sender asked for.
pub const STRICT_SET: SetId = 10;

/// First id that a compiled table may use freely.
pub const FIRST_FREE_SET: SetId = 11;

/// Place of a set in `SETS`. The slots are interleaved so that a larger map needs no other index.
#[inline(always)]
#[must_use]
pub const fn set_index(slot: u32, set: SetId) -> u32 {
    set * SLOTS + slot
}

/// Place of a port (host byte order) in `PORTS`.
#[inline(always)]
#[must_use]
pub const fn port_index(slot: u32, port: u16) -> u32 {
    port as u32 * SLOTS + slot
}

/// Place of a rule in `ACTIONS` and `HITS`.
#[inline(always)]
#[must_use]
pub const fn action_index(slot: u32, rule: RuleIndex) -> u32 {
    rule * SLOTS + slot
}
