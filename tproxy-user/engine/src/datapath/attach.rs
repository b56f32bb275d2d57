//! tc hooks of the interfaces: which program goes where, and its link.

use std::{collections::BTreeMap, io, sync::atomic::AtomicBool};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError},
    },
    util::KernelVersion,
};
use rustix::io::Errno;
use tproxy_common::abi::program;

use super::{Datapath, DatapathError, patiently, pins, with_program};
use crate::{
    host::{
        Direction, clsact,
        fault::{self, Step},
        links::{self, Layer, Link},
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
    /// A kernel without tcx attaches programs by a classifier that it lacks.
    #[error(
        "the kernel has no tc classifier for the eBPF program at tc {hook} of {interface}: run modprobe cls_bpf (CONFIG_NET_CLS_BPF), or boot Linux 6.6, which needs none"
    )]
    NoClassifier {
        /// Its name.
        interface: String,
        /// Which hook.
        hook: Direction,
    },
    /// Before tcx, packets that leave are met in a qdisc that excludes another.
    #[error(
        "interface {0} has a qdisc `ingress`, and with it Linux before 6.6 shows no program the packets that leave: make it a clsact, with the same filters (tc qdisc del dev {0} ingress; tc qdisc add dev {0} clsact), or boot Linux 6.6"
    )]
    OnlyIngress(String),
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

pub(super) const CLASSIFIERS: [&str; 6] = [
    program::INGRESS,
    program::INGRESS_L3,
    program::EGRESS,
    program::EGRESS_L3,
    program::LO_INGRESS,
    program::INJECT,
];

/// Links by interface index and hook; dropping one detaches.
#[derive(Default)]
pub(super) struct TcxLinks(pub(super) BTreeMap<(u32, Direction), (Link, SchedClassifierLink)>);

impl TcxLinks {
    pub(super) fn detach_all(&mut self) {
        self.0.clear();
    }
}

/// Has the kernel verify a tc program, once.
pub(super) fn require_loaded(
    ebpf: &mut Ebpf,
    name: &'static str,
    given_up: &AtomicBool,
) -> Result<(), DatapathError> {
    patiently(given_up, || {
        with_program(ebpf, name, |program: &mut SchedClassifier| match program.fd() {
            Ok(_loaded) => Ok(()),
            Err(_) => program.load(),
        })
    })
}

impl Datapath {
    /// Attaches to a hook of `link`, once. Its program is loaded, if that is the first of its kind.
    ///
    /// # Errors
    /// [`AttachError`] within [`DatapathError`].
    pub fn attach(&mut self, link: &Link, hook: Direction) -> Result<(), DatapathError> {
        if self.links.0.contains_key(&(link.index, hook)) {
            return Ok(());
        }
        fault::check(Step::Attach)?;
        let name = program_for(link, hook)?;
        let attachment = self.settings.attachment;
        if attachment == Attachment::Clsact
            && hook == Direction::Egress
            && clsact::only_ingress(link.index).is_ok_and(|only| only)
        {
            return Err(AttachError::OnlyIngress(link.name.clone()).into());
        }
        require_loaded(&mut self.ebpf, name, &self.given_up)?;
        let options = attachment.options(self.settings.mark, name);
        // aya knows interfaces by their names only, and those change: what is called so has to be the one before and after.
        let gone = || DatapathError::from(AttachError::Gone(link.name.clone()));
        let called = links::name_of(link.index).ok_or_else(gone)?;
        let attached = with_program(&mut self.ebpf, name, |program: &mut SchedClassifier| {
            let id = program.attach_with_options(&called, attach_type(hook), options)?;
            program.take_link(id)
        });
        let mut attached = attached.map_err(|error| refused(attachment, link, hook, error))?;
        if links::name_of(link.index).is_none_or(|now| now != called) {
            return Err(gone());
        }
        if let Some(directory) = &self.pins {
            attached = pins::pin_hook(directory, link.index, hook, attached)?;
        }
        self.links.0.insert((link.index, hook), (link.clone(), attached));
        Ok(())
    }

    /// Detaches from a hook of the interface with this index; nothing, if it was not attached.
    ///
    /// # Errors
    /// When its pin cannot be removed.
    pub fn detach_from(&mut self, ifindex: u32, hook: Direction) -> Result<(), DatapathError> {
        if let Some(directory) = &self.pins {
            pins::unpin_hook(directory, ifindex, hook)?;
        }
        self.links.0.remove(&(ifindex, hook));
        Ok(())
    }

    /// What is attached: interfaces and hooks.
    #[must_use]
    pub fn attached(&self) -> Vec<(Link, Direction)> {
        self.links.0.iter().map(|((_, hook), (link, _))| (link.clone(), *hook)).collect()
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

pub(super) const fn attach_type(hook: Direction) -> TcAttachType {
    match hook {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    }
}

/// What attaches the tc programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// Links, which vanish with the process (Linux 6.6).
    Tcx,
    /// Filters of a clsact qdisc, which stay: the journal has to have [`Change::TcFilter`] first.
    ///
    /// [`Change::TcFilter`]: crate::host::Change::TcFilter
    Clsact,
}

impl Attachment {
    /// The better one that the running kernel has.
    #[must_use]
    pub fn of_this_kernel() -> Self {
        let tcx = KernelVersion::current().is_ok_and(|running| running >= KernelVersion::new(6, 6, 0));
        if tcx { Self::Tcx } else { Self::Clsact }
    }

    fn options(self, mark: Mark, name: &str) -> TcAttachOptions {
        match self {
            // An earlier instance takes its mark off what it sends to applications of this host: a later one has to see it
            // before, to know what it is to leave alone.
            Self::Tcx if name == program::LO_INGRESS => TcAttachOptions::TcxOrder(LinkOrder::first()),
            Self::Tcx => TcAttachOptions::TcxOrder(LinkOrder::default()),
            Self::Clsact => TcAttachOptions::Netlink(NlOptions {
                priority: clsact::PRIORITY,
                handle: clsact::handle(mark).into(),
                classid: None,
            }),
        }
    }
}

fn refused(attachment: Attachment, link: &Link, hook: Direction, error: DatapathError) -> DatapathError {
    let source = match error {
        DatapathError::Program { source: ProgramError::SyscallError(error), .. } => error.io_error,
        DatapathError::Program { source: ProgramError::TcError(TcError::IoError(error)), .. } => error,
        DatapathError::Program { source: ProgramError::TcError(TcError::NetlinkError(error)), .. } => {
            error.raw_os_error().map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error)
        }
        DatapathError::Program { source, .. } => io::Error::other(source),
        other => return other,
    };
    let interface = link.name.clone();
    match Errno::from_io_error(&source) {
        // A filter's interface that is gone is ENODEV, and its qdisc EINVAL (`tc_new_tfilter()`).
        Some(Errno::NOENT) if attachment == Attachment::Clsact => {
            AttachError::NoClassifier { interface, hook }.into()
        }
        Some(Errno::NODEV | Errno::NOENT) => AttachError::Gone(interface).into(),
        _ => AttachError::Refused { interface, hook, source }.into(),
    }
}
