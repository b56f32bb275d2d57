//! What the running kernel offers the datapath, found out by trying, and who else has programs at the hooks.

use aya::{
    programs::{ProgramInfo, ProgramType, SchedClassifier, TcAttachType},
    sys::{BpfHelper, is_helper_supported, is_program_supported},
};

use super::attach::attach_type;
use crate::host::{Direction, clsact, links::Link};

/// Helpers that kernels may lack, or refuse to a kind of program.
const HELPERS: [(ProgramType, BpfHelper, &str); 11] = [
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_skc_lookup_tcp, "bpf_skc_lookup_tcp"),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_sk_lookup_udp, "bpf_sk_lookup_udp"),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_sk_assign, "bpf_sk_assign (tc)"),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_sk_fullsock, "bpf_sk_fullsock"),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_redirect, "bpf_redirect"),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_skb_change_type, "bpf_skb_change_type"),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_skb_change_head, "bpf_skb_change_head"),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_skb_ancestor_cgroup_id, "bpf_skb_ancestor_cgroup_id"),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_ktime_get_coarse_ns, "bpf_ktime_get_coarse_ns"),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_ringbuf_reserve, "bpf_ringbuf_reserve"),
    (ProgramType::SkLookup, BpfHelper::BPF_FUNC_sk_assign, "bpf_sk_assign (sk_lookup)"),
];

/// What the datapath calls and the kernel does not offer, by name.
///
/// # Errors
/// When the kernel does not say, as without privileges.
pub fn missing_helpers() -> Result<Vec<&'static str>, String> {
    let mut missing = Vec::new();
    for (program, helper, name) in HELPERS {
        if !is_helper_supported(program, helper).map_err(|error| error.to_string())? {
            missing.push(name);
        }
    }
    Ok(missing)
}

/// Whether there are listener lookup programs (Linux 5.9).
///
/// # Errors
/// As for [`missing_helpers`].
pub fn has_sk_lookup() -> Result<bool, String> {
    is_program_supported(ProgramType::SkLookup).map_err(|error| error.to_string())
}

/// Whether tc programs can be attached by links, which vanish with their process: `lo` is asked what it has.
#[must_use]
pub fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// Whether an interface has no hook for packets that leave: without tcx, its qdisc `ingress` is in the way of the one that has.
#[must_use]
pub fn lacks_egress(interface: &Link) -> bool {
    !has_tcx() && clsact::only_ingress(interface.index).unwrap_or_default()
}

/// A program at a tcx hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedProgram {
    /// The kernel's number for it.
    pub id: u32,
    /// At most 15 characters.
    pub name: String,
}

impl AttachedProgram {
    /// Whether it is of an instance of tproxy.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.name.starts_with("tproxy_")
    }
}

/// The programs at a tcx hook, in the order in which they run. None where the kernel has no tcx.
#[must_use]
pub fn attached(interface: &str, hook: Direction) -> Vec<AttachedProgram> {
    let Ok((_, programs)) = SchedClassifier::query_tcx(interface, attach_type(hook)) else {
        return Vec::new();
    };
    let named = |program: &ProgramInfo| AttachedProgram {
        id: program.id(),
        name: program.name_as_str().unwrap_or_default().to_owned(),
    };
    programs.iter().map(named).collect()
}
