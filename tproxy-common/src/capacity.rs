//! How large the maps are: what the object asks for, and what the loader makes of it. The kernel takes the memory of most of
//! them when it makes them.

/// Connections that were decided and are not accepted yet: at least.
pub const DECISIONS: u32 = 16_384;
/// UDP flows that are remembered: at least.
pub const MEMORY: u32 = 16_384;
/// Either is forgotten sooner than it fills.
pub const MOST_REMEMBERED: u32 = 1 << 20;
/// Directions of UDP flows of the host's own sockets that are left alone: at least. They take memory when there are any.
pub const HOST_FLOWS: u32 = 131_072;
/// The same where no rule could take one of their datagrams for a new flow.
pub const FEW_HOST_FLOWS: u32 = 1;
/// Datagrams whose fragments are seen.
pub const FRAGMENTS: u32 = 8192;
/// What NAT makes of the addresses of spoofed upstream sockets, and of what clients ask for.
pub const TRANSLATIONS: u32 = 8192;
/// The same where no rule has either.
pub const FEW_TRANSLATIONS: u32 = 2048;
/// First packets that are held.
pub const HELD: u32 = 4096;
/// The same where no rule holds any.
pub const FEW_HELD: u32 = 2048;
/// Destinations that were reached by connections whose first packets were held.
pub const REACHED: u32 = 8192;
/// The same where no rule holds any: those that are published are there, too.
pub const FEW_REACHED: u32 = 2048;
/// Bytes of first packets on their way to user space: some hundred of them. When it is full, connections are accepted at once.
pub const SYNS: u32 = 256 * 1024;
/// The same where no rule holds any.
pub const FEW_SYNS: u32 = SYNS / 4;
/// Bytes of what is told to whoever looks: some thousand flows.
pub const TRACE: u32 = 128 * 1024;
/// Prefixes of the host's own addresses.
pub const HOST_ADDRESSES: u32 = 65_536;
/// Prefixes of rules, of sources and of destinations, in both slots.
pub const PREFIXES: u32 = 262_144;
/// Interfaces that rules name, in both slots.
pub const INTERFACES: u32 = 8192;
/// User ids that rules name, in both slots; and as many cgroups.
pub const SENDERS: u32 = 16_384;
/// Rule sets in each slot: at least.
pub const SETS: u32 = 1024;
