//! What the datapath decided, and why. Every reason has a counter.

use crate::rule::RuleIndex;

/// What is done with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Leave it alone.
    Pass(Reason),
    /// Deliver it to a listener, on behalf of this rule.
    Steer(RuleIndex),
    /// Answer with RST, or ICMP port unreachable.
    Reject,
    /// Discard it.
    Drop,
    /// Discard it: a rule that must not be got round selects it, or may, and it cannot be treated as that rule says.
    Unreadable,
}

impl Verdict {
    /// Why, as the rules have it: whether somebody is there to receive what is steered, they do not know.
    #[inline(always)]
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Pass(reason) => reason,
            Self::Steer(_) => Reason::RuleSteer,
            Self::Reject => Reason::RuleReject,
            Self::Drop => Reason::RuleDrop,
            Self::Unreadable => Reason::Unreadable,
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $index:literal => $text:literal,)+) => {
        /// Why a packet met its verdict; the index of its counter.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Reason { $($(#[doc = $doc])+ $name = $index,)+ }

        impl Reason {
            /// All reasons, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The name in logs and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// The same in a sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    /// Passed: neither IPv4 nor IPv6, or a protocol that is not intercepted.
    OtherProtocol = 0 => "pass_other_protocol",
    /// Passed: truncated, or headers that contradict each other.
    Malformed = 1 => "pass_malformed",
    /// Passed: not addressed to this host at the link layer, or tagged for or by a VLAN device above.
    NotForUs = 2 => "pass_not_for_us",
    /// Passed: sent by one of our own sockets.
    OwnMark = 3 => "pass_own_mark",
    /// Passed: not a first packet, and no socket of ours owns its flow.
    NotOurs = 4 => "pass_not_ours",
    /// Passed: first packet, but the destination is never intercepted.
    NeverIntercepted = 5 => "pass_never_intercepted",
    /// Passed: first packet to one of the host's own addresses.
    HostAddress = 6 => "pass_host_address",
    /// Passed: first packet that no rule selects.
    NoRule = 7 => "pass_no_rule",
    /// Passed: first packet, and the rule's action is `pass`.
    RulePass = 8 => "pass_rule",
    /// Passed: first packet while no new flow is taken, since the instance is stopping.
    Draining = 9 => "pass_draining",
    /// Passed: first packet that a rule selects, but the listener is gone.
    ListenerGone = 10 => "pass_listener_gone",
    /// Steered: first packet, by rule.
    RuleSteer = 11 => "steer_rule",
    /// Steered: a socket of ours owns the flow.
    SocketOwned = 12 => "steer_socket_owned",
    /// Steered: the flow was decided, and its handshake is completed without a socket (SYN cookie).
    Decided = 13 => "steer_decided",
    /// Steered: an ICMP error about a flow of ours.
    IcmpError = 14 => "steer_icmp_error",
    /// Rejected, by rule.
    RuleReject = 15 => "reject_rule",
    /// Dropped, by rule.
    RuleDrop = 16 => "drop_rule",
    /// Passed: a later fragment of a packet that passed or was never seen.
    Fragment = 17 => "pass_fragment",
    /// Discarded after the kernel refused what steering or rejecting needs.
    KernelRefused = 18 => "drop_kernel_refused",
    /// Passed: a UDP flow that passed before, or its replies.
    Remembered = 19 => "pass_remembered",
    /// Passed: first packet, but no router would forward it further; the kernel reports it (traceroute).
    Expiring = 20 => "pass_expiring",
    /// Steered: a later fragment of a packet that is steered, or may be.
    SteerFragment = 21 => "steer_fragment",
    /// Dropped: a later fragment of a packet that was dropped or rejected.
    DropFragment = 22 => "drop_fragment",
    /// Steered, to be sent on as it is: no rule selects the datagram, but fragments of it were taken before its first.
    Carried = 23 => "steer_carried",
    /// Rejected: a rule selects the flow, but the instance stops or is gone, and is to be survived by its rules.
    Unserved = 24 => "reject_unserved",
    /// Dropped: its headers cannot be read, or it cannot be answered, and it may be of a flow that a rule selects.
    Unreadable = 25 => "drop_unreadable",
    /// Passed: a rule selects the connection, but its SYN is signed with a key that only its ends have (TCP MD5, TCP-AO).
    Signed = 26 => "pass_signed",
    /// Discarded: a SYN that was sent again while user space connects to the upstream, before the connection is accepted.
    Held = 27 => "drop_held",
    /// Dropped: an ICMP redirect of this host's, which would have a client send past it what rules select.
    Redirect = 28 => "drop_redirect",
    /// Passed: a rule selects what a process of this host sends, but NAT of this host has changed its addresses or ports, and would not change those of our replies back.
    Translated = 29 => "pass_translated",
    /// Passed: first packet that a rule selects, but the worker that is to serve the flow has not answered for seconds.
    Stalled = 30 => "pass_stalled",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_dense() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}
