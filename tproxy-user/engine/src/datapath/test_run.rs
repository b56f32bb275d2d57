//! Asking a loaded program what it would do with a packet, over the maps that it has, without a packet being sent
//! (`BPF_PROG_TEST_RUN`).

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, TestRunResult};

use super::{Datapath, DatapathError, attach::program_for};
use crate::host::{Direction, links::Link};

/// A packet as a tc hook sees it.
#[derive(Debug, Clone, Copy)]
pub struct HookPacket<'a> {
    /// From its link-layer header on, if the interface has one. The kernel takes the first 14 bytes for an Ethernet
    /// header in any case: it wants as many, and a whole IP header after an EtherType that promises it, and tells by
    /// the destination whether the packet is for this host.
    pub packet: &'a [u8],
    /// Its mark before.
    pub mark: u32,
    /// At egress: the interface it came in by, zero for one that this host sends.
    pub ingress_ifindex: u32,
}

/// What a program did with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// What becomes of it.
    pub course: PacketCourse,
    /// Its mark after.
    pub mark: u32,
    /// Its bytes after.
    pub packet: Vec<u8>,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketCourse {
    /// Left alone.
    Passed,
    /// Bears the steer mark, so that it is delivered locally.
    Steered,
    /// Turned into its own refusal: a reset or an ICMP error.
    Answered,
    /// Discarded.
    Dropped,
}

/// Where a field is in `__sk_buff`, all of which are words.
pub(super) mod field {
    pub(in crate::datapath) const MARK: usize = 8;
    pub(in crate::datapath) const INGRESS_IFINDEX: usize = 36;
    pub(in crate::datapath) const IFINDEX: usize = 40;
    pub(in crate::datapath) const CB: usize = 48;
}

/// More than any kernel's `__sk_buff`: it gives back all of it or an error.
pub(super) const CONTEXT_SIZE: usize = 512;

impl Datapath {
    /// Runs the program that [`Self::attach`] would attach to this hook; it need not be attached, but loaded
    /// ([`Self::load_all`]). The calling thread is in the interface's network namespace.
    ///
    /// All is as with a real packet, counters and decisions included, but for two things: its sender is the superuser,
    /// in the cgroup of the calling process, and no socket is assigned.
    ///
    /// # Errors
    /// When the kernel cannot run it: too short or too long a packet, no such interface.
    pub fn test_run(&self, link: &Link, hook: Direction, seen: HookPacket<'_>) -> Result<Ran, DatapathError> {
        const NEXT: i32 = -1;
        const SHOT: i32 = 2;
        const REDIRECT: i32 = 7;
        /// What is pushed in front of a packet that has no link-layer header.
        const ETHERNET: usize = 14;
        /// What is put in front of the packet that an ICMPv6 error quotes.
        const ICMPV6_ERROR: usize = 48;

        let name = program_for(link, hook)?;
        let fields = [
            (field::MARK, seen.mark),
            (field::INGRESS_IFINDEX, seen.ingress_ifindex),
            (field::IFINDEX, link.index),
        ];
        let mut packet = vec![0; seen.packet.len() + ICMPV6_ERROR];
        let (result, mark) = self.run_once(name, seen.packet, &fields, &mut packet)?;
        packet.truncate(result.data_size_out as usize);
        let course = match result.return_value as i32 {
            NEXT if hook == Direction::Ingress && self.settings.mark.is_steered(mark) => {
                PacketCourse::Steered
            }
            NEXT => PacketCourse::Passed,
            // An answer is redirected, too; but a packet that is steered stays as it is.
            REDIRECT if packet == seen.packet || packet.get(ETHERNET..) == Some(seen.packet) => {
                PacketCourse::Steered
            }
            REDIRECT => PacketCourse::Answered,
            SHOT => PacketCourse::Dropped,
            unknown => unreachable!("{name} returned {unknown}"),
        };
        Ok(Ran { course, mark, packet })
    }

    /// Runs a program that is loaded, with these fields of its context, and returns its answer and the packet's mark after.
    pub(super) fn run_once(
        &self,
        name: &'static str,
        packet: &[u8],
        fields: &[(usize, u32)],
        packet_after: &mut [u8],
    ) -> Result<(TestRunResult, u32), DatapathError> {
        // As much of it as a caller may fill in.
        let mut context = [0; field::IFINDEX + 4];
        for (at, value) in fields {
            context[*at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let mut context_after = [0; CONTEXT_SIZE];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(packet_after),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_after),
            ..TestRunOptions::default()
        };
        let program: Result<&SchedClassifier, _> = self
            .ebpf
            .program(name)
            .unwrap_or_else(|| panic!("the object lacks its own program {name}"))
            .try_into();
        let result = program
            .and_then(|program| program.test_run(options))
            .map_err(|source| DatapathError::Program { name, source })?;
        let mark = context_after[field::MARK..].first_chunk().copied().map_or(0, u32::from_ne_bytes);
        Ok((result, mark))
    }
}
