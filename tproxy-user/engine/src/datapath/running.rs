//! The programs and maps of a running instance, from outside of its process: the very ones that it has loaded.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd, BorrowedFd},
};

use aya::{
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, RingBuf, lpm_trie::Key},
    programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions, loaded_programs},
};
use tproxy_common::{
    abi::{
        self, CgroupKey, Control, Memory, NO_RULE, SLOT_BITS, SlotAddr, SlotKey, Told, Unrestricted, map,
        question, watch,
    },
    addr::Addr,
    flow::{Flow, Protocol, Tuple},
    policy::Lookups,
    rule::{ActionKind, RuleIndex, RuleSet, Scope, SetId},
    verdict::Reason,
};

use super::{
    attach::{AttachError, program_for},
    leading,
    test_run::field,
};
use crate::{
    host::{Direction, links::Link},
    policy::Cgroup,
};

/// What the kernel keeps of a program's name.
const NAME_LENGTH: usize = 15;

/// Why a running instance could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum RunningError {
    /// What its process has open cannot be read.
    #[error("/proc/{pid}/fdinfo: {source}; run this as root")]
    Process {
        /// The process.
        pid: u32,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel gives programs and maps of other processes to few.
    #[error(
        "a running instance (pid {pid}) is asked by its programs and maps, which the kernel opens for CAP_SYS_ADMIN only: run this as root, although `tproxy run` needs less"
    )]
    Privilege {
        /// The process.
        pid: u32,
    },
    /// It was built from other sources than this program.
    #[error(
        "the instance (pid {pid}) has no eBPF {kind} {name}: it is of another version; ask with its own tproxy"
    )]
    OtherVersion {
        /// The process.
        pid: u32,
        /// `program` or `map`.
        kind: &'static str,
        /// What is missing.
        name: String,
    },
    /// A map could not be opened or read.
    #[error("eBPF map {name}: {source}")]
    Map {
        /// Its name.
        name: &'static str,
        /// aya's account.
        source: MapError,
    },
    /// A program could not be opened or run.
    #[error("eBPF program {name}: {source}")]
    Program {
        /// Its name.
        name: String,
        /// aya's account.
        source: ProgramError,
    },
    /// No program of the instance is for this hook.
    #[error("the instance has nothing attached there")]
    NotAttached,
    /// Nothing can be attached to the interface.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// The programs and maps that a process has open.
#[derive(Debug)]
pub struct Running {
    /// The process.
    pub pid: u32,
    programs: BTreeMap<String, u32>,
    maps: BTreeMap<String, u32>,
}

/// What a program answers about a packet that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Why it would do what it would do.
    pub reason: Reason,
    /// The rule that decides.
    pub rule: Option<RuleIndex>,
    /// The worker that would receive the flow.
    pub worker: Option<u32>,
}

impl Running {
    /// The instance that is a process.
    ///
    /// # Errors
    /// When the process is gone, or somebody else's.
    pub fn of(pid: u32) -> Result<Self, RunningError> {
        let in_process = |source| RunningError::Process { pid, source };
        let (mut programs, mut maps) = (BTreeSet::new(), BTreeMap::new());
        for file in fs::read_dir(format!("/proc/{pid}/fdinfo")).map_err(in_process)? {
            // Files come and go meanwhile.
            let text = fs::read_to_string(file.map_err(in_process)?.path()).unwrap_or_default();
            let number =
                |key| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u32>().ok());
            programs.extend(number("prog_id:"));
            let Some(id) = number("map_id:") else { continue };
            match MapInfo::from_id(id) {
                Ok(info) => maps.extend(info.name_as_str().map(|name| (name.to_owned(), id))),
                Err(MapError::SyscallError(error))
                    if error.io_error.kind() == io::ErrorKind::PermissionDenied =>
                {
                    return Err(RunningError::Privilege { pid });
                }
                // It is gone meanwhile.
                Err(_) => {}
            }
        }
        let named =
            loaded_programs().filter_map(Result::ok).filter(|program| programs.contains(&program.id()));
        let programs =
            named.filter_map(|program| Some((program.name_as_str()?.to_owned(), program.id()))).collect();
        Ok(Self { pid, programs, maps })
    }

    /// The kernel's number of the program for a hook of an interface, and its name. None where the instance has not loaded
    /// it, because it is attached to no such hook.
    ///
    /// # Errors
    /// [`RunningError::Attach`]
    pub fn program(&self, link: &Link, hook: Direction) -> Result<Option<(u32, &'static str)>, RunningError> {
        let name = program_for(link, hook)?;
        let kept = name.get(..NAME_LENGTH).unwrap_or(name);
        Ok(self.programs.get(kept).map(|id| (*id, name)))
    }

    /// Asks the program for a hook what it would do with a packet that begins a flow, of a sender with this user id, who
    /// is in the cgroup of the calling process. The calling thread is in the interface's network namespace; the packet
    /// begins with an Ethernet header.
    ///
    /// Nothing is counted or remembered.
    ///
    /// # Errors
    /// When the kernel cannot run it.
    pub fn ask(
        &self,
        link: &Link,
        hook: Direction,
        packet: &[u8],
        tuple: &Tuple,
        uid: u32,
    ) -> Result<Answer, RunningError> {
        // One that does not know what a question is would take it for a packet.
        self.map(map::WATCH)?;
        let (id, name) = self.program(link, hook)?.ok_or(RunningError::NotAttached)?;
        let untouched = Untouched::before(self, tuple)?;
        let mut context = [0_u8; field::CB + 20];
        let mut set = |at: usize, word: u32| context[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        set(field::IFINDEX, link.index);
        for (index, word) in question::ASKED.into_iter().enumerate() {
            set(field::CB + 4 * index, word);
        }
        set(field::CB + 4 * question::UID_OR_REASON, uid);
        set(field::CB + 4 * question::WORKER, u32::MAX);
        let mut context_after = [0; super::test_run::CONTEXT_SIZE];
        let options = TestRunOptions {
            data_in: Some(packet),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_after),
            ..TestRunOptions::default()
        };
        let failed = |source| RunningError::Program { name: name.to_owned(), source };
        let info = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id);
        let info = info.ok_or_else(|| failed(ProgramError::NotLoaded))?;
        let program = SchedClassifier::from_program_info(info, Cow::Borrowed(name)).map_err(failed)?;
        program.test_run(options).map_err(failed)?;
        untouched.after(tuple);
        let word = |index: usize| {
            context_after[field::CB + 4 * index..].first_chunk().copied().map_or(0, u32::from_ne_bytes)
        };
        let reason = Reason::ALL.get(word(question::UID_OR_REASON) as usize);
        match reason {
            Some(reason) if word(0) == question::ANSWERED => Ok(Answer {
                reason: *reason,
                rule: Some(word(question::RULE)).filter(|rule| *rule != NO_RULE),
                worker: Some(word(question::WORKER)).filter(|worker| *worker != u32::MAX),
            }),
            _ => Err(RunningError::OtherVersion {
                pid: self.pid,
                kind: "program that answers,",
                name: name.to_owned(),
            }),
        }
    }

    /// What the rules' tables have for a flow, in the generation that is active.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn tables(&self, scope: Scope, flow: &Flow, sender: &[Cgroup]) -> Result<FlowTables, RunningError> {
        let control: Array<_, Control> = self.typed(map::CONTROL)?;
        let control = control.get(&0, 0).map_err(in_map(map::CONTROL))?;
        let slot = control.slot();
        let sets: Array<_, RuleSet> = self.typed(map::SETS)?;
        let set = |id: Option<SetId>| id.and_then(|id| sets.get(&abi::set_index(slot, id), 0).ok());
        let prefix = |name, addr: &Addr| -> Result<_, RunningError> {
            let table: LpmTrie<_, SlotAddr, SetId> = self.typed(name)?;
            let key = Key::new(SLOT_BITS + 128, SlotAddr { slot: slot.to_be_bytes(), addr: *addr });
            Ok(set(table.get(&key, 0).ok()))
        };
        let number = |name, number, unrestricted: Unrestricted| -> Result<_, RunningError> {
            let table: HashMap<_, SlotKey, SetId> = self.typed(name)?;
            let named = table.get(&SlotKey { slot, number }, 0).ok();
            Ok(set(Some(named.unwrap_or(unrestricted as SetId))))
        };
        let hosts: LpmTrie<_, Addr, u32> = self.typed(map::HOST_ADDRESSES)?;
        let is_host = |addr: &Addr| hosts.get(&Key::new(128, *addr), 0).is_ok();
        let ports: Array<_, SetId> = self.typed(map::PORTS)?;
        let port = ports.get(&abi::port_index(slot, u16::from_be_bytes(flow.tuple.dport)), 0);
        let cgroups: HashMap<_, CgroupKey, SetId> = self.typed(map::CGROUPS)?;
        let cgroup = |cgroup: &Cgroup| cgroups.get(&CgroupKey { id: cgroup.id(), slot: slot.into() }, 0).ok();
        let cgroup = sender.iter().find_map(cgroup).unwrap_or(Unrestricted::Cgroup as SetId);
        let Tuple { src, dst, .. } = flow.tuple;
        Ok(FlowTables {
            deciding: control.deciding != 0,
            control,
            hosts: [src, dst].into_iter().filter(is_host).collect(),
            scope: set(Some(abi::scope_set(scope, flow.protocol))),
            source: prefix(map::SOURCES, &src)?,
            destination: prefix(map::DESTINATIONS, &dst)?,
            port: set(port.ok()),
            interface: number(map::INTERFACES, flow.ifindex, Unrestricted::Interface)?,
            uid: number(map::UIDS, flow.uid, Unrestricted::Uid)?,
            cgroup: set(Some(cgroup)),
            any_port: set(Some(Unrestricted::Port as SetId)),
            strict: set(Some(abi::STRICT_SET)),
            actions: self.typed(map::ACTIONS)?,
        })
    }

    /// Looks at what is decided.
    ///
    /// # Errors
    /// When a map cannot be opened.
    pub fn watch(&self) -> Result<Watch, RunningError> {
        let ring = RingBuf::try_from(self.map(map::TRACE)?).map_err(in_map(map::TRACE))?;
        Ok(Watch { ring, words: self.typed(map::WATCH)? })
    }

    /// The kernel's number of the map that all who look at this instance share.
    ///
    /// # Errors
    /// [`RunningError::OtherVersion`]
    pub fn trace_id(&self) -> Result<u32, RunningError> {
        self.id_of(map::TRACE)
    }

    fn id_of(&self, name: &'static str) -> Result<u32, RunningError> {
        let missing = || RunningError::OtherVersion { pid: self.pid, kind: "map", name: name.to_owned() };
        self.maps.get(name).copied().ok_or_else(missing)
    }

    fn map(&self, name: &'static str) -> Result<Map, RunningError> {
        MapData::from_id(self.id_of(name)?).and_then(Map::from_map_data).map_err(in_map(name))
    }

    fn typed<M: TryFrom<Map, Error = MapError>>(&self, name: &'static str) -> Result<M, RunningError> {
        M::try_from(self.map(name)?).map_err(in_map(name))
    }
}

/// When the flow's memories were last used. The program's look at them renews them.
struct Untouched([Memories; 2]);

/// Those of one map, with what it had of both directions.
struct Memories {
    map: HashMap<MapData, Tuple, Memory>,
    entries: [Option<Memory>; 2],
}

impl Untouched {
    fn before(running: &Running, tuple: &Tuple) -> Result<Self, RunningError> {
        let of = |name| -> Result<Memories, RunningError> {
            let map: HashMap<_, Tuple, Memory> = running.typed(name)?;
            let entries = [*tuple, tuple.reversed()].map(|tuple| map.get(&tuple, 0).ok());
            Ok(Memories { map, entries })
        };
        Ok(Self([of(map::MEMORY)?, of(map::HOST_FLOWS)?]))
    }

    fn after(self, tuple: &Tuple) {
        /// Of `bpf_map_update_elem`: what was forgotten meanwhile stays forgotten.
        const BPF_EXIST: u64 = 2;
        for Memories { mut map, entries } in self.0 {
            for (tuple, entry) in [*tuple, tuple.reversed()].into_iter().zip(entries) {
                if let Some(entry) = entry {
                    let _ = map.insert(tuple, entry, BPF_EXIST);
                }
            }
        }
    }
}

/// What the tables of a running instance have for one flow.
pub struct FlowTables {
    /// Whether it takes new flows.
    pub deciding: bool,
    control: Control,
    hosts: Vec<Addr>,
    scope: Option<RuleSet>,
    source: Option<RuleSet>,
    destination: Option<RuleSet>,
    port: Option<RuleSet>,
    interface: Option<RuleSet>,
    uid: Option<RuleSet>,
    cgroup: Option<RuleSet>,
    any_port: Option<RuleSet>,
    strict: Option<RuleSet>,
    actions: Array<MapData, u8>,
}

impl Lookups for FlowTables {
    fn is_host_address(&self, addr: &Addr) -> bool {
        self.hosts.contains(addr)
    }

    fn is_publishing(&self, protocol: Protocol) -> bool {
        self.control.is_publishing(protocol)
    }

    fn by_scope(&self, _: Scope, _: Protocol) -> Option<&RuleSet> {
        self.scope.as_ref()
    }

    fn by_source(&self, _: &Addr) -> Option<&RuleSet> {
        self.source.as_ref()
    }

    fn by_destination(&self, _: &Addr) -> Option<&RuleSet> {
        self.destination.as_ref()
    }

    fn by_port(&self, _: u16) -> Option<&RuleSet> {
        self.port.as_ref()
    }

    fn by_interface(&self, _: u32) -> Option<&RuleSet> {
        self.interface.as_ref()
    }

    fn by_uid(&self, _: u32) -> Option<&RuleSet> {
        self.uid.as_ref()
    }

    fn by_cgroup(&self) -> Option<&RuleSet> {
        self.cgroup.as_ref()
    }

    fn for_any_port(&self) -> Option<&RuleSet> {
        self.any_port.as_ref()
    }

    fn strict(&self) -> Option<&RuleSet> {
        self.strict.as_ref()
    }

    fn action(&self, rule: RuleIndex) -> ActionKind {
        let action = self.actions.get(&abi::action_index(self.control.slot(), rule), 0);
        action.map_or(ActionKind::Pass, ActionKind::from_byte)
    }
}

/// A look at what an instance decides. Only one may look at a time: what is taken is gone for others.
pub struct Watch {
    ring: RingBuf<MapData>,
    words: Array<MapData, u64>,
}

impl Watch {
    /// Has the programs tell until then, in nanoseconds since boot; 0 is no longer.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn until(&mut self, time: u64) -> Result<(), RunningError> {
        self.words.set(watch::UNTIL, time, 0).map_err(in_map(map::WATCH))
    }

    /// How much could not be told since the instance was started.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn lost(&self) -> Result<u64, RunningError> {
        self.words.get(&watch::LOST, 0).map_err(in_map(map::WATCH))
    }

    /// The next that was told; none, for the moment.
    pub fn take(&mut self) -> Option<Told> {
        self.ring.next().and_then(|bytes| read(&bytes))
    }
}

impl AsFd for Watch {
    /// Readable when there is something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// [`Told`], from its bytes.
fn read(bytes: &[u8]) -> Option<Told> {
    let bytes = &mut &*bytes;
    let seen = u64::from_ne_bytes(leading(bytes)?);
    let tuple = Tuple {
        src: Addr(leading(bytes)?),
        dst: Addr(leading(bytes)?),
        sport: leading(bytes)?,
        dport: leading(bytes)?,
    };
    let mut word = || leading(bytes).map(u32::from_ne_bytes);
    let [protocol, scope, ifindex, uid, reason, rule, rest] =
        [word()?, word()?, word()?, word()?, word()?, word()?, word()?];
    Some(Told { seen, tuple, protocol, scope, ifindex, uid, reason, rule, rest })
}

fn in_map(name: &'static str) -> impl Fn(MapError) -> RunningError {
    move |source| RunningError::Map { name, source }
}
