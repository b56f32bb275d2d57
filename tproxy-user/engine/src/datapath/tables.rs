//! The rule tables: the slot that is not active is filled, then the control word flips. A packet sees the old rules or
//! the new ones, never a mix.

use std::{
    collections::{BTreeSet, HashMap as StdHashMap},
    sync::Arc,
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use ipnet::IpNet;
use rustix::thread::{MembarrierCommand, membarrier};
use tproxy_common::{
    abi::{self, CgroupKey, PortBits, SLOT_BITS, SLOTS, SlotAddr, SlotKey, Unrestricted, map},
    addr::Addr,
    rule::{RuleSet, SetId},
};

use super::{Datapath, DatapathError, in_map, take};
use crate::{
    host::fault::{self, Step},
    policy::{Compiled, Extent},
};

pub(super) struct RuleTables {
    host_addresses: LpmTrie<MapData, Addr, u32>,
    known_host_addresses: BTreeSet<IpNet>,
    sources: LpmTrie<MapData, SlotAddr, SetId>,
    destinations: LpmTrie<MapData, SlotAddr, SetId>,
    ports: Array<MapData, SetId>,
    tcp_ports: Array<MapData, PortBits>,
    interfaces: HashMap<MapData, SlotKey, SetId>,
    uids: HashMap<MapData, SlotKey, SetId>,
    cgroups: HashMap<MapData, CgroupKey, SetId>,
    sets: Array<MapData, RuleSet>,
    actions: Array<MapData, u8>,
    /// What each slot holds, to be removed before it is filled again.
    held: StdHashMap<u32, FilledSlot>,
}

/// Rules in a slot.
struct FilledSlot {
    rules: Arc<Compiled>,
    filled: Filled,
}

/// How much of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filled {
    /// Some of it, perhaps: filling has failed, or goes on.
    InPart,
    /// All of it.
    Whole,
}

impl RuleTables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Ok(Self {
            host_addresses: take(ebpf, map::HOST_ADDRESSES)?,
            known_host_addresses: BTreeSet::new(),
            sources: take(ebpf, map::SOURCES)?,
            destinations: take(ebpf, map::DESTINATIONS)?,
            ports: take(ebpf, map::PORTS)?,
            tcp_ports: take(ebpf, map::TCP_PORTS)?,
            interfaces: take(ebpf, map::INTERFACES)?,
            uids: take(ebpf, map::UIDS)?,
            cgroups: take(ebpf, map::CGROUPS)?,
            sets: take(ebpf, map::SETS)?,
            actions: take(ebpf, map::ACTIONS)?,
            held: StdHashMap::new(),
        })
    }

    /// How many entries there are of both slots, by map.
    pub(super) fn entries(&self) -> [(&'static str, u64); 6] {
        let held =
            |of: fn(&Compiled) -> usize| self.held.values().map(|held| of(&held.rules)).sum::<usize>() as u64;
        [
            (map::HOST_ADDRESSES, self.known_host_addresses.len() as u64),
            (map::SOURCES, held(|rules| rules.sources.len())),
            (map::DESTINATIONS, held(|rules| rules.destinations.len())),
            (map::INTERFACES, held(|rules| rules.interfaces.len())),
            (map::UIDS, held(|rules| rules.uids.len())),
            (map::CGROUPS, held(|rules| rules.cgroups.len())),
        ]
    }

    fn fill(&mut self, slot: u32, rules: &Arc<Compiled>) -> Result<(), DatapathError> {
        // First, so that what a failure leaves is removed as well.
        self.held.insert(slot, FilledSlot { rules: Arc::clone(rules), filled: Filled::InPart });
        for (id, set) in (0..).zip(&rules.sets) {
            self.sets.set(abi::set_index(slot, id), set, 0).map_err(in_map(map::SETS))?;
        }
        for (rule, action) in (0..).zip(&rules.actions) {
            self.actions
                .set(abi::action_index(slot, rule), *action as u8, 0)
                .map_err(in_map(map::ACTIONS))?;
        }
        for (prefix, set) in &rules.sources {
            self.sources.insert(&slot_prefix(slot, prefix), set, 0).map_err(in_map(map::SOURCES))?;
        }
        for (prefix, set) in &rules.destinations {
            self.destinations
                .insert(&slot_prefix(slot, prefix), set, 0)
                .map_err(in_map(map::DESTINATIONS))?;
        }
        for (port, set) in &rules.ports {
            self.ports.set(abi::port_index(slot, *port), set, 0).map_err(in_map(map::PORTS))?;
        }
        // None is taken out: not those of earlier rules, nor those that the programs have added.
        let mut tcp_ports = Box::new(self.tcp_ports.get(&0, 0).map_err(in_map(map::TCP_PORTS))?);
        tcp_ports.merge(&rules.tcp_ports);
        self.tcp_ports.set(0, *tcp_ports, 0).map_err(in_map(map::TCP_PORTS))?;
        for (number, set) in &rules.interfaces {
            insert(&mut self.interfaces, SlotKey { slot, number: *number }, *set, map::INTERFACES)?;
        }
        for (number, set) in &rules.uids {
            insert(&mut self.uids, SlotKey { slot, number: *number }, *set, map::UIDS)?;
        }
        for (cgroup, set) in &rules.cgroups {
            insert(&mut self.cgroups, CgroupKey { id: cgroup.id(), slot: slot.into() }, *set, map::CGROUPS)?;
        }
        self.held.insert(slot, FilledSlot { rules: Arc::clone(rules), filled: Filled::Whole });
        Ok(())
    }

    /// Whether the slot still has these very rules: those that a reload replaced, which was not confirmed. Then there is
    /// nothing to fill.
    fn has(&self, slot: u32, rules: &Compiled) -> bool {
        self.held.get(&slot).is_some_and(|held| held.filled == Filled::Whole && *held.rules == *rules)
    }

    fn clear(&mut self, slot: u32) -> Result<(), DatapathError> {
        let Some(FilledSlot { rules: held, .. }) = self.held.remove(&slot) else { return Ok(()) };
        for prefix in held.sources.keys() {
            gone(self.sources.remove(&slot_prefix(slot, prefix))).map_err(in_map(map::SOURCES))?;
        }
        for prefix in held.destinations.keys() {
            gone(self.destinations.remove(&slot_prefix(slot, prefix))).map_err(in_map(map::DESTINATIONS))?;
        }
        for port in held.ports.keys() {
            let unrestricted = Unrestricted::Port as SetId;
            self.ports.set(abi::port_index(slot, *port), unrestricted, 0).map_err(in_map(map::PORTS))?;
        }
        for number in held.interfaces.keys() {
            gone(self.interfaces.remove(&SlotKey { slot, number: *number }))
                .map_err(in_map(map::INTERFACES))?;
        }
        for number in held.uids.keys() {
            gone(self.uids.remove(&SlotKey { slot, number: *number })).map_err(in_map(map::UIDS))?;
        }
        for cgroup in held.cgroups.keys() {
            let key = CgroupKey { id: cgroup.id(), slot: slot.into() };
            gone(self.cgroups.remove(&key)).map_err(in_map(map::CGROUPS))?;
        }
        Ok(())
    }
}

impl Datapath {
    /// Makes `rules` the ones that are asked, at once; flows are decided by this generation from then on. `lasting` is the
    /// extent of earlier ones that still have flows.
    ///
    /// # Errors
    /// When there is no room or a map cannot be written; the rules that were active then still are.
    pub fn install(
        &mut self,
        rules: &Arc<Compiled>,
        generation: u32,
        lasting: Extent,
    ) -> Result<(), DatapathError> {
        self.require_room(rules)?;
        let next = (self.state.slot() + 1) % SLOTS;
        if self.tables.held.contains_key(&next) {
            wait_for_programs();
        }
        if !self.tables.has(next, rules) {
            fault::check(Step::Install)?;
            self.tables.clear(next)?;
            self.tables.fill(next, rules)?;
        }
        self.hits.renew(next, rules.names.clone())?;
        // What a packet reads beside the active word has to do for the rules before and after it changes: both slots' depths,
        // and an extent that includes the one that lasts.
        self.state.cgroup_depths =
            self.tables.held.values().fold(0, |all, held| all | held.rules.cgroup_depths());
        let before = Extent { scopes: self.state.scopes, spoofs_datagrams: self.state.spoofing != 0 };
        let extent = rules.extent.and(lasting);
        self.set_extent(extent.and(before));
        self.publish()?;
        self.state.active = abi::active(generation, next);
        self.publish()?;
        self.set_extent(extent);
        self.publish()
    }

    /// Whether there is room for these rules.
    ///
    /// # Errors
    /// [`DatapathError::Room`]
    pub fn require_room(&self, rules: &Compiled) -> Result<(), DatapathError> {
        let (needed, room) = (rules.sets.len(), self.settings.sizes.sets as usize);
        if needed > room { Err(DatapathError::Room { needed, room }) } else { Ok(()) }
    }

    fn set_extent(&mut self, extent: Extent) {
        self.state.scopes = extent.scopes;
        self.state.spoofing = extent.spoofs_datagrams.into();
    }

    /// Tells the datapath which addresses are the host's own.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_host_addresses(
        &mut self,
        prefixes: impl IntoIterator<Item = IpNet>,
    ) -> Result<(), DatapathError> {
        let wanted: BTreeSet<IpNet> = prefixes.into_iter().collect();
        let (map, known) = (&mut self.tables.host_addresses, &mut self.tables.known_host_addresses);
        let surplus: Vec<IpNet> = known.difference(&wanted).copied().collect();
        // First, since they may be what there is no room for.
        for prefix in surplus {
            gone(map.remove(&host_prefix(&prefix))).map_err(in_map(map::HOST_ADDRESSES))?;
            known.remove(&prefix);
        }
        for prefix in wanted.into_iter().filter(|prefix| !known.contains(prefix)).collect::<Vec<_>>() {
            fault::check(Step::Address)?;
            map.insert(&host_prefix(&prefix), 1, 0).map_err(in_map(map::HOST_ADDRESSES))?;
            known.insert(prefix);
        }
        Ok(())
    }
}

/// Waits until no program reads a slot that is no longer active. They run under RCU, and the call waits for a grace period
/// (`sys_membarrier()`).
fn wait_for_programs() {
    if let Err(error) = membarrier(MembarrierCommand::Global) {
        // With nohz_full CPUs there is no such call. The slot was left when the rules changed the last time, and a program
        // takes microseconds.
        tracing::debug!("membarrier: {error}");
    }
}

/// Length of a prefix in the IPv4-mapped space, in bits.
fn mapped_len(prefix: &IpNet) -> u32 {
    u32::from(prefix.prefix_len()) + if matches!(prefix, IpNet::V4(_)) { 96 } else { 0 }
}

fn host_prefix(prefix: &IpNet) -> Key<Addr> {
    Key::new(mapped_len(prefix), prefix.network().into())
}

fn slot_prefix(slot: u32, prefix: &IpNet) -> Key<SlotAddr> {
    let data = SlotAddr { slot: slot.to_be_bytes(), addr: prefix.network().into() };
    Key::new(SLOT_BITS + mapped_len(prefix), data)
}

fn insert<K: Pod>(
    map: &mut HashMap<MapData, K, SetId>,
    key: K,
    set: SetId,
    name: &'static str,
) -> Result<(), DatapathError> {
    map.insert(key, set, 0).map_err(in_map(name))
}

/// What is not there need not be removed.
fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
