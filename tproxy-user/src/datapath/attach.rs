//! tc hooks of the interfaces: which program goes where, and its link.

use std::{collections::BTreeMap, io};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
    util::KernelVersion,
};
use tproxy_common::abi::program;

use super::{Datapath, DatapathError, patiently, with_program};
use crate::{
    host::{
        Direction,
        links::{Layer, Link},
    },
    mark::Mark,
};

/// Why a hook could not be used.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The interface went away meanwhile.
    #[error("interface {0} is gone")]
    Gone(String),
    /// Its frames begin with neither an Ethernet nor an IP header.
    #[error(
        "interface {0} carries neither Ethernet frames nor bare IP packets; nothing can be steered there"
    )]
    LinkLayer(String),
    /// The kernel refused.
    #[error("cannot attach to tc {hook} of interface {interface}: {source}")]
    Refused {
        /// Its name.
        interface: String,
        /// Which hook.
        hook: Direction,
        /// The kernel's account.
        source: io::Error,
    },
}

const CLASSIFIERS: [&str; 5] =
    [program::INGRESS, program::INGRESS_L3, program::EGRESS, program::EGRESS_L3, program::LO_INGRESS];

/// Links by interface index and hook; dropping one detaches.
#[derive(Default)]
pub(super) struct Links(BTreeMap<(u32, Direction), SchedClassifierLink>);

impl Links {
    pub(super) fn detach_all(&mut self) {
        self.0.clear();
    }
}

pub(super) fn load_programs(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    for name in CLASSIFIERS {
        with_program(ebpf, name, |program: &mut SchedClassifier| patiently(|| program.load()))?;
    }
    Ok(())
}

impl Datapath {
    /// Attaches to a hook of `link`, once.
    ///
    /// # Errors
    /// [`AttachError`] within [`DatapathError`].
    pub fn attach(&mut self, link: &Link, hook: Direction) -> Result<(), DatapathError> {
        if self.links.0.contains_key(&(link.index, hook)) {
            return Ok(());
        }
        let name = program_for(link, hook)?;
        let mark = self.settings.mark;
        let attached = with_program(&mut self.ebpf, name, |program: &mut SchedClassifier| {
            let id = if has_tcx() {
                let last = TcAttachOptions::TcxOrder(LinkOrder::default());
                program.attach_with_options(&link.name, attach_type(hook), last)
            } else {
                add_clsact(&link.name)?;
                let (priority, handle) = filter_of(mark);
                let options = NlOptions { priority, handle, classid: None };
                program.attach_with_options(&link.name, attach_type(hook), TcAttachOptions::Netlink(options))
            }?;
            program.take_link(id)
        });
        let attached = attached.map_err(|error| refused(link, hook, error))?;
        self.links.0.insert((link.index, hook), attached);
        Ok(())
    }

    /// Detaches from a hook of the interface with this index; nothing, if it was not attached.
    pub fn detach_from(&mut self, ifindex: u32, hook: Direction) {
        self.links.0.remove(&(ifindex, hook));
    }

    /// What is attached: interface indices and hooks.
    #[must_use]
    pub fn attached(&self) -> Vec<(u32, Direction)> {
        self.links.0.keys().copied().collect()
    }
}

/// Headers decide which build of a program reads an interface's packets.
pub(super) fn program_for(link: &Link, hook: Direction) -> Result<&'static str, AttachError> {
    match (hook, link.layer) {
        (Direction::Ingress, Layer::Loopback) => Ok(program::LO_INGRESS),
        (Direction::Ingress, Layer::Ethernet) => Ok(program::INGRESS),
        (Direction::Ingress, Layer::Ip) => Ok(program::INGRESS_L3),
        (Direction::Egress, Layer::Loopback | Layer::Ethernet) => Ok(program::EGRESS),
        (Direction::Egress, Layer::Ip) => Ok(program::EGRESS_L3),
        (_, Layer::Other) => Err(AttachError::LinkLayer(link.name.clone())),
    }
}

const fn attach_type(hook: Direction) -> TcAttachType {
    match hook {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    }
}

/// Whether tc programs are attached by links, which vanish with the process (tcx, Linux 6.6), rather than as clsact
/// filters, which stay.
#[must_use]
pub fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|running| running >= KernelVersion::new(6, 6, 0))
}

/// Removes the clsact filter of the instance with this mark, where a dead process left one.
///
/// # Errors
/// `NotFound` when there is no such filter or no such interface, otherwise the kernel's.
pub fn detach_filter(interface: &str, hook: Direction, mark: Mark) -> io::Result<()> {
    let (priority, handle) = filter_of(mark);
    let link = SchedClassifierLink::attached(interface, attach_type(hook), priority, handle, None)?;
    aya::programs::links::Link::detach(link).map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))
}

/// Where an instance's filter is in the list of its hook: told by its mark, since all bear the same name.
fn filter_of(mark: Mark) -> (u16, TcHandle) {
    let bits = mark.steer();
    let folded = (bits >> 16) as u16 ^ bits as u16;
    (folded | 1, TcHandle::new(0, 1))
}

fn add_clsact(interface: &str) -> Result<(), TcError> {
    match tc::qdisc_add_clsact(interface) {
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

fn refused(link: &Link, hook: Direction, error: DatapathError) -> DatapathError {
    let source = match error {
        DatapathError::Program { source: ProgramError::SyscallError(error), .. } => error.io_error,
        DatapathError::Program { source: ProgramError::TcError(TcError::IoError(error)), .. } => error,
        DatapathError::Program { source, .. } => io::Error::other(source),
        other => return other,
    };
    let interface = link.name.clone();
    match source.raw_os_error() {
        Some(libc::ENODEV | libc::ENOENT) => AttachError::Gone(interface).into(),
        _ => AttachError::Refused { interface, hook, source }.into(),
    }
}
