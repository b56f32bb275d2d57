//! tc hooks of the interfaces: which program goes where, and its link.

use std::{collections::BTreeMap, io};

use aya::{
    Ebpf,
    programs::{
        ProgramError, SchedClassifier, TcAttachType,
        tc::{self, SchedClassifierLink, TcError},
    },
};
use tproxy_common::abi::program;

use super::{Datapath, DatapathError, with_program};
use crate::host::links::{Layer, Link};

/// A tc hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Packets that arrive.
    Ingress,
    /// Packets that leave.
    Egress,
}

impl Hook {
    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    /// Headers decide which build of a program reads an interface's packets.
    const fn program(self, layer: Layer) -> &'static str {
        match (self, layer) {
            (Self::Ingress, Layer::Loopback) => program::LO_INGRESS,
            (Self::Ingress, Layer::Ethernet) => program::INGRESS,
            (Self::Ingress, Layer::Ip) => program::INGRESS_L3,
            (Self::Egress, Layer::Loopback | Layer::Ethernet) => program::EGRESS,
            (Self::Egress, Layer::Ip) => program::EGRESS_L3,
        }
    }
}

/// Why a hook could not be used.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The interface went away meanwhile.
    #[error("interface {0} is gone")]
    Gone(String),
    /// The kernel refused.
    #[error("tc {hook:?} of interface {interface}: {source}")]
    Refused {
        /// Its name.
        interface: String,
        /// Which hook.
        hook: Hook,
        /// The kernel's account.
        source: io::Error,
    },
}

const CLASSIFIERS: [&str; 5] =
    [program::INGRESS, program::INGRESS_L3, program::EGRESS, program::EGRESS_L3, program::LO_INGRESS];

/// Links by interface index and hook; dropping one detaches.
#[derive(Default)]
pub(super) struct Links(BTreeMap<(u32, Hook), SchedClassifierLink>);

impl Links {
    pub(super) fn detach_all(&mut self) {
        self.0.clear();
    }
}

pub(super) fn load_programs(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    for name in CLASSIFIERS {
        with_program(ebpf, name, SchedClassifier::load)?;
    }
    Ok(())
}

impl Datapath {
    /// Attaches to a hook of `link`, once.
    ///
    /// # Errors
    /// [`AttachError`] within [`DatapathError`].
    pub fn attach(&mut self, link: &Link, hook: Hook) -> Result<(), DatapathError> {
        if self.links.0.contains_key(&(link.index, hook)) {
            return Ok(());
        }
        let name = hook.program(link.layer);
        let attached = with_program(&mut self.ebpf, name, |program: &mut SchedClassifier| {
            if !has_tcx() {
                add_clsact(&link.name)?;
            }
            let id = program.attach(&link.name, hook.attach_type())?;
            program.take_link(id)
        });
        let attached = attached.map_err(|error| refused(link, hook, error))?;
        self.links.0.insert((link.index, hook), attached);
        Ok(())
    }

    /// Detaches from a hook of the interface with this index; nothing, if it was not attached.
    pub fn detach_from(&mut self, ifindex: u32, hook: Hook) {
        self.links.0.remove(&(ifindex, hook));
    }

    /// What is attached: interface indices and hooks.
    pub fn attached(&self) -> impl Iterator<Item = (u32, Hook)> {
        self.links.0.keys().copied()
    }
}

/// Whether tc programs are attached by links, which vanish with the process (tcx, Linux 6.6), rather than as filters.
#[must_use]
pub fn has_tcx() -> bool {
    aya::util::KernelVersion::at_least(6, 6, 0)
}

fn add_clsact(interface: &str) -> Result<(), ProgramError> {
    match tc::qdisc_add_clsact(interface) {
        Err(TcError::NetlinkError(error)) if io::Error::from(error).kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(ProgramError::from),
    }
}

fn refused(link: &Link, hook: Hook, error: DatapathError) -> DatapathError {
    let DatapathError::Program { source, .. } = &error else { return error };
    let source = match source {
        ProgramError::SyscallError(error) => io::Error::from(error.io_error.kind()),
        ProgramError::TcError(TcError::IoError(error)) => io::Error::from(error.kind()),
        other => io::Error::other(other.to_string()),
    };
    if source.raw_os_error() == Some(libc::ENODEV) || source.kind() == io::ErrorKind::NotFound {
        return AttachError::Gone(link.name.clone()).into();
    }
    AttachError::Refused { interface: link.name.clone(), hook, source }.into()
}
