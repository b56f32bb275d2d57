//! What a rule is to the datapath: a bit in a set, a scope, and a kind of action.

/// Which traffic a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Scope {
    /// Packets that arrive on a named interface for an address that is not the host's.
    Forwarded = 0,
    /// Packets that this host's own processes send.
    Outbound = 1,
    /// Connections to the host's own addresses, before the application's listener sees them.
    Inbound = 2,
}
