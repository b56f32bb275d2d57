//! What holds where nobody says anything else.

/// Bits of a packet's mark that are ours.
pub const MARK_MASK: u32 = 0x3000_0000;
/// Of them, those that a packet to be delivered locally has.
pub const MARK: u32 = 0x2000_0000;
/// Routing table.
pub const TABLE: u32 = 29_808;
/// Priority of the routing rules.
pub const PRIORITY: u32 = 100;

/// Seconds that an upstream may take to accept a connection.
pub const CONNECT: u64 = 10;
/// Seconds without a byte after which a connection ends (RFC 5382, 5: two hours and four minutes).
pub const IDLE: u64 = 124 * 60;
/// Seconds that live flows have at a stop.
pub const DRAIN: u64 = 30;
/// Seconds of silence after which a UDP session of one datagram, or one direction, ends.
pub const UDP: u64 = 30;
/// The same of one with datagrams in both directions.
pub const UDP_STREAM: u64 = 120;
/// Seconds of silence after which the ends of a connection are asked whether they are there.
pub const KEEPALIVE: u64 = 60;

/// UDP sessions at most where descriptors set no lower limit: what each takes of kernel memory adds up.
pub const MOST_SESSIONS: usize = 65_536;
/// TCP connections at most where descriptors set no lower limit.
pub const MOST_CONNECTIONS: usize = 1 << 20;
/// One client's share of either is one of so many.
pub const SHARES: usize = 4;

/// UDP sessions of an instance that another program makes, and which does not ask for its own descriptors.
pub const SESSIONS: usize = 16_384;
/// The same of TCP connections.
pub const CONNECTIONS: usize = 32_768;
