//! The datapath: the eBPF programs and maps of one instance in one network namespace, and their links.
//!
//! The only module that names aya. On kernels with tcx (6.6) nothing here outlives the [`Datapath`] that is not pinned
//! ([`Datapath::outlive`]): the kernel removes links whose file descriptors are closed, whatever ends the process.

mod attach;
mod beats;
mod btf;
mod decisions;
mod held;
mod hits;
mod host_flows;
mod inject;
mod log;
mod memory;
mod pins;
pub mod running;
mod sizes;
mod standing;
pub mod support;
mod tables;
mod test_run;
#[cfg(test)]
mod tests;
mod unheard;
mod usage;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

pub use attach::{AttachError, Attachment};
use aya::{
    Ebpf, EbpfError, EbpfLoader, Pod, VerifierLogLevel,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, SockMap},
    pin::PinError,
    programs::{ProgramError, SkLookup, SkReuseport, links::FdLink},
    sys::{Stats, enable_stats},
};
pub use decisions::DecisionMap;
pub use hits::RuleHits;
pub use memory::MemoryMap;
pub use sizes::Sizes;
pub use test_run::{HookPacket, PacketCourse, Ran};
use tproxy_common::{
    abi::{self, Control, Others, global, map, program},
    flow::{Protocol, Tuple},
    verdict::Reason,
};
pub use usage::{Filling, MapUse};

use crate::{
    config::{Config, Steer},
    family::Family,
    flow::{ClientAddr, OriginalDst},
    host::HostError,
    mark::Mark,
};

/// The committed object; the build script compares its digest with the sources'.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/ebpf/tproxy.o"));

/// Why the datapath could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The kernel refused the object or one of its maps.
    #[error("the kernel refused the eBPF object: {0}")]
    Load(#[from] EbpfError),
    /// More rule sets than there is room for.
    #[error(
        "the rules need {needed} rule sets, and there is room for {room}: restart tproxy, which makes room for them"
    )]
    Room {
        /// How many there are.
        needed: usize,
        /// How many there may be.
        room: usize,
    },
    /// The kernel refused a program or its link.
    #[error("eBPF program {name}: {}", without_log(source))]
    Program {
        /// Name in the object.
        name: &'static str,
        /// aya's account, with the verifier's log where there is one.
        #[source]
        source: ProgramError,
    },
    /// A map could not be read or written.
    #[error("eBPF map {name}: {source}")]
    Map {
        /// Name in the object.
        name: &'static str,
        /// aya's account.
        #[source]
        source: MapError,
    },
    /// The network namespace could not be opened.
    #[error("/proc/thread-self/ns/net: {0}")]
    Namespace(#[source] io::Error),
    /// The programs' log could not be opened.
    #[error("log of the eBPF programs: {0}")]
    Log(#[source] io::Error),
    /// The link of a program could not be pinned.
    #[error("cannot pin the link {}: {source}", pin.display())]
    Pin {
        /// Where.
        pin: PathBuf,
        /// aya's account.
        #[source]
        source: PinError,
    },
    /// The host refused.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A tc hook could not be used.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A packet that nobody sent could not be made to come in.
    #[error("the kernel takes no packet in by that interface: it is down, or gone")]
    NotInjected,
    /// Somebody has no use for it any more.
    #[error("it was given up before it was loaded")]
    GivenUp,
}

/// What is fixed for the lifetime of a datapath.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The instance's mark.
    pub mark: Mark,
    /// Who assigns the socket.
    pub steer: Steer,
    /// What attaches the tc programs.
    pub attachment: Attachment,
    /// Number of workers, each with a listener a family.
    pub workers: u32,
    /// For how long a silent UDP flow is remembered, so that its next datagram is not taken for a new flow's.
    pub memory: Duration,
    /// How large the maps are made.
    pub sizes: Sizes,
    /// Whether the programs log, and the verifier says what it makes of them.
    pub verbose: bool,
}

/// Has the kernel measure the run time of all eBPF programs of the machine, for as long as the descriptor is open.
///
/// # Errors
/// When the kernel refuses (before 5.8, or without `CAP_SYS_ADMIN`).
pub fn measure_run_time() -> io::Result<OwnedFd> {
    enable_stats(Stats::RunTime).map_err(|error| error.io_error)
}

/// Programs, maps and links of one instance.
pub struct Datapath {
    settings: Settings,
    ebpf: Ebpf,
    control: Array<MapData, Control>,
    state: Control,
    counters: PerCpuArray<MapData, u64>,
    listeners: SockMap<MapData>,
    tables: tables::RuleTables,
    hits: hits::Hits,
    capacities: usage::Capacities,
    counted: usage::Counted,
    links: attach::TcxLinks,
    lookup: Option<FdLink>,
    /// Where links are pinned, once they are to outlive the process.
    pins: Option<PathBuf>,
    /// Set once nobody has a use for what is being loaded.
    given_up: Arc<AtomicBool>,
}

impl Datapath {
    /// Makes the maps and loads what listeners need: their lookup, and what they do with what arrives. Nothing is attached yet; a tc program is loaded at its first
    /// [`Self::attach`], because the verifier takes tenths of a second for each.
    ///
    /// # Errors
    /// [`DatapathError`] when the kernel refuses.
    pub fn load(settings: Settings) -> Result<Self, DatapathError> {
        Self::load_unless(settings, Arc::default())
    }

    /// The same; no program is loaded any more once it is given up, until [`Self::settled`].
    ///
    /// # Errors
    /// As above, and [`DatapathError::GivenUp`].
    pub fn load_unless(settings: Settings, given_up: Arc<AtomicBool>) -> Result<Self, DatapathError> {
        let log_level = if settings.verbose { log::EVERYTHING } else { log::NOTHING };
        let offsets = btf::ConnectionOffsets::of_this_kernel();
        let mut loader = EbpfLoader::new();
        settings.sizes.apply(&mut loader);
        let mut ebpf = loader
            // No program asks for the kernel's own types.
            .btf(None)
            // aya loads a program again for its log whenever it fails, also where a signal came in between; writing it takes
            // many times as long as the rest.
            .verifier_log_level(if settings.verbose {
                VerifierLogLevel::default()
            } else {
                VerifierLogLevel::STATS
            })
            .override_global(global::STEER_MARK, &settings.mark.steer(), true)
            .override_global(global::OWN_MARK, &settings.mark.own(), true)
            .override_global(global::MARK_MASK, &settings.mark.mask(), true)
            .override_global(global::WORKERS, &settings.workers, true)
            .override_global(global::MEMORY_LIFETIME, &nanoseconds(settings.memory), true)
            .override_global(global::SK_ASSIGN, &u8::from(settings.steer == Steer::SkAssign), true)
            .override_global(global::CONNECTION_OF_PACKET, &offsets.of_packet, true)
            .override_global(global::CONNECTION_STATUS, &offsets.status, true)
            .override_global(aya_log::LEVEL, &log_level, false)
            .load(OBJECT)?;
        patiently(&given_up, || {
            with_program(&mut ebpf, program::SK_LOOKUP, |lookup: &mut SkLookup| lookup.load())
        })?;
        patiently(&given_up, || {
            with_program(&mut ebpf, program::ARRIVAL, |arrival: &mut SkReuseport| arrival.load())
        })?;
        let capacities = usage::capacities(&ebpf)?;
        let counted = usage::counted(&ebpf)?;
        Ok(Self {
            settings,
            capacities,
            counted,
            control: take(&mut ebpf, map::CONTROL)?,
            state: Control::NOTHING,
            counters: take(&mut ebpf, map::COUNTERS)?,
            listeners: take(&mut ebpf, map::LISTENERS)?,
            tables: tables::RuleTables::take(&mut ebpf)?,
            hits: hits::Hits::take(&mut ebpf)?,
            links: attach::TcxLinks::default(),
            lookup: None,
            pins: None,
            given_up,
            ebpf,
        })
    }

    /// What is loaded from now on is wanted, whatever was given up before.
    pub fn settled(&mut self) {
        self.given_up = Arc::default();
    }

    /// What attaches the tc programs.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        self.settings.attachment
    }

    /// Whether the maps are as large as a configuration asks for.
    #[must_use]
    pub fn is_large_enough(&self, config: &Config) -> bool {
        self.settings.sizes.do_for(Sizes::of(config, 0))
    }

    /// Loads all programs that may be attached, so that the verifier says at once which it refuses.
    ///
    /// # Errors
    /// [`DatapathError::Program`]
    pub fn load_all(&mut self) -> Result<(), DatapathError> {
        attach::CLASSIFIERS
            .into_iter()
            .try_for_each(|name| attach::require_loaded(&mut self.ebpf, name, &self.given_up))
    }

    /// Makes `socket` the listener of a worker. The kernel clears the place when the socket is closed.
    ///
    /// # Errors
    /// When a TCP socket does not listen, a UDP socket is not bound, or either is not of a group (`SO_REUSEPORT`).
    pub fn set_listener(
        &mut self,
        worker: u32,
        protocol: Protocol,
        family: Family,
        socket: &(impl AsFd + AsRawFd),
    ) -> Result<(), DatapathError> {
        self.set_socket(abi::listener_index(worker, protocol, family.into()), socket)
    }

    /// Makes `socket` the one that swallows what is dropped or refused where it would arrive.
    ///
    /// # Errors
    /// As for [`Self::set_listener`].
    pub fn set_black_hole(
        &mut self,
        protocol: Protocol,
        family: Family,
        socket: &(impl AsFd + AsRawFd),
    ) -> Result<(), DatapathError> {
        self.set_socket(abi::black_hole_index(protocol, family.into()), socket)
    }

    fn set_socket(&mut self, index: u32, socket: &(impl AsFd + AsRawFd)) -> Result<(), DatapathError> {
        with_program(&mut self.ebpf, program::ARRIVAL, |arrival: &mut SkReuseport| arrival.attach(socket))?;
        self.listeners.set(index, socket, 0).map_err(in_map(map::LISTENERS))
    }

    /// Attaches the listener lookup to the calling thread's network namespace.
    ///
    /// # Errors
    /// When the namespace cannot be opened or the kernel refuses.
    pub fn attach_lookup(&mut self) -> Result<(), DatapathError> {
        let netns = File::open("/proc/thread-self/ns/net").map_err(DatapathError::Namespace)?;
        self.lookup = Some(with_program(&mut self.ebpf, program::SK_LOOKUP, |lookup: &mut SkLookup| {
            let link = lookup.attach(netns)?;
            Ok(lookup.take_link(link)?.into())
        })?);
        Ok(())
    }

    /// Begins to take new flows.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn start_deciding(&mut self) -> Result<(), DatapathError> {
        self.state.deciding = 1;
        self.publish()
    }

    /// Takes no new flow from now on; flows of ours are still steered.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn stop_deciding(&mut self) -> Result<(), DatapathError> {
        self.state.deciding = 0;
        self.publish()
    }

    /// Says whether what lands on `lo` gets a mark of its own.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_landing(&mut self, own: bool) -> Result<(), DatapathError> {
        let expected = Control { landing: own.into(), ..self.state };
        if self.state == expected {
            return Ok(());
        }
        self.state = expected;
        self.publish()
    }

    /// Says whether NAT of this host may change the destination of what comes in, and whether rules of scope `forwarded` are
    /// asked about what it may send elsewhere that is for the host's own addresses.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn expect_nat(&mut self, redirecting: bool, publishing: bool) -> Result<(), DatapathError> {
        let expected =
            Control { redirecting: redirecting.into(), publishing: publishing.into(), ..self.state };
        if self.state == expected {
            return Ok(());
        }
        self.state = expected;
        self.publish()
    }

    fn publish(&mut self) -> Result<(), DatapathError> {
        self.control.set(0, self.state, 0).map_err(in_map(map::CONTROL))
    }

    /// Packets by reason, over all CPUs, since the datapath was loaded.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Vec<(Reason, u64)>, DatapathError> {
        let read = |reason: &Reason| {
            let per_cpu = self.counters.get(&(*reason as u32), 0).map_err(in_map(map::COUNTERS))?;
            Ok((*reason, per_cpu.iter().sum()))
        };
        Reason::ALL.iter().map(read).collect()
    }

    /// Leaves alone what other instances send, of which there may be [`MAX_OTHERS`](abi::MAX_OTHERS).
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn leave_alone(&mut self, others: &[Mark]) -> Result<(), DatapathError> {
        let mut theirs = Others::default();
        for (place, mark) in theirs.marks.iter_mut().zip(others) {
            *place = [mark.own(), mark.mask()];
        }
        let data = self.ebpf.map_mut(map::OTHERS).expect("the map is never taken");
        let write = |data| Array::<_, Others>::try_from(data)?.set(0, theirs, 0);
        write(data).map_err(in_map(map::OTHERS))
    }

    /// A further handle to a hash map that the programs and the workers share.
    fn share<K: Pod, V: Pod>(&self, name: &'static str) -> Result<HashMap<MapData, K, V>, DatapathError> {
        share(&self.ebpf, name)
    }

    /// Lets go of all links: from here on packets go their own way, but for links that are pinned.
    pub fn detach(&mut self) {
        self.links.detach_all();
        self.lookup = None;
    }
}

/// The key of a flow's first packet.
fn tuple(client: ClientAddr, dst: OriginalDst) -> Tuple {
    Tuple {
        src: client.0.ip().into(),
        dst: dst.0.ip().into(),
        sport: client.0.port().to_be_bytes(),
        dport: dst.0.port().to_be_bytes(),
    }
}

fn share<K: Pod, V: Pod>(ebpf: &Ebpf, name: &'static str) -> Result<HashMap<MapData, K, V>, DatapathError> {
    let own = match ebpf.map(name).expect("the map is never taken") {
        Map::LruHashMap(data) => again(data).map(Map::LruHashMap),
        Map::HashMap(data) => again(data).map(Map::HashMap),
        _ => unreachable!("{name} is a hash"),
    };
    own.and_then(HashMap::try_from).map_err(in_map(name))
}

/// A further handle to a map.
fn again(map: &MapData) -> Result<MapData, MapError> {
    MapData::from_fd(map.fd().as_fd().try_clone_to_owned().map_err(MapError::IoError)?)
}

/// The first bytes of several.
fn leading<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos().try_into().unwrap_or(u64::MAX)
}

/// Loads a program, again when a signal came in between: the verifier then gives up with `EAGAIN` (`do_check()`). Not so
/// where the signal says that nobody wants it any more.
fn patiently(
    given_up: &AtomicBool,
    mut load: impl FnMut() -> Result<(), DatapathError>,
) -> Result<(), DatapathError> {
    const ATTEMPTS: usize = 5;
    let interrupted = |result: &Result<(), DatapathError>| {
        let Err(DatapathError::Program { source: ProgramError::LoadError { io_error, .. }, .. }) = result
        else {
            return false;
        };
        io_error.kind() == io::ErrorKind::WouldBlock
    };
    let mut result = Err(DatapathError::GivenUp);
    for _ in 0..ATTEMPTS {
        if given_up.load(Relaxed) {
            return Err(DatapathError::GivenUp);
        }
        result = load();
        if !interrupted(&result) {
            break;
        }
    }
    result
}

/// Without the verifier's log, which is thousands of lines (`-v` shows it).
fn without_log(error: &ProgramError) -> String {
    tracing::debug!("{error}");
    match error {
        ProgramError::LoadError { io_error, .. } => format!("the kernel refuses to load it: {io_error}"),
        other => other.to_string(),
    }
}

fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, DatapathError> {
    let map = ebpf.take_map(name).ok_or(MapError::InvalidName { name: name.to_owned() });
    map.and_then(M::try_from).map_err(in_map(name))
}

fn in_map(name: &'static str) -> impl Fn(MapError) -> DatapathError {
    move |source| DatapathError::Map { name, source }
}

fn with_program<'a, P: 'a, T>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
    run: impl FnOnce(&'a mut P) -> Result<T, ProgramError>,
) -> Result<T, DatapathError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).unwrap_or_else(|| panic!("the object lacks its own program {name}"));
    program.try_into().and_then(run).map_err(|source| DatapathError::Program { name, source })
}
