//! By which way a flow's packets leave when they are relayed: the one that the client's own would have taken.
//!
//! Of a socket, routing rules see an address, a mark and a user id; of a client's packet they see where it came in, too. So
//! where rules of others may tell the two apart, the kernel is asked by which table the client's packet would leave, and the
//! socket is given the user id that stands for that table ([`uid_for`]).

mod told;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use rustix::io::Errno;
use tokio::sync::watch;
use tproxy_common::{abi::Origin, flow::Protocol};

use crate::{
    config::{Action, RuleEgress, Scope},
    family::Family,
    flow::{ClientAddr, OriginalDst},
    generation::KeptRule,
    host::{
        links,
        local_table::HostAddresses,
        policy::{Discernment, uid_for},
        route::{Asker, RoutedPacket},
        sysctl::Sysctl,
    },
    mark::Mark,
    socket::{Egress, TrafficClass},
};

pub use told::{Asked, Way};

/// Number of `lo`.
const LOOPBACK: u32 = 1;

/// Answers that a worker keeps.
const MOST: usize = 4096;

/// What the host's routing rules mean to flows that are relayed. A handle: the instance says, and its workers ask.
#[derive(Debug, Clone, Default)]
pub struct Routing(Arc<RoutingState>);

#[derive(Debug, Default)]
struct RoutingState {
    /// Another number means that answers of before may be wrong.
    version: AtomicU64,
    /// By family.
    rules: RwLock<[Discernment; 2]>,
    /// Addresses that were the host's. It is told of anew when there may be another way without them.
    gone: watch::Sender<Arc<BTreeSet<IpAddr>>>,
    /// Whether NAT may change the sources of what is sent.
    translating: AtomicBool,
    host_addresses: HostAddresses,
}

impl Routing {
    /// Says what the rules mean from now on.
    pub(crate) fn set(&self, rules: &[Discernment; 2]) {
        let mut known = self.0.rules.write().unwrap_or_else(PoisonError::into_inner);
        if *known != *rules {
            known.clone_from(rules);
            self.changed();
        }
    }

    /// Says that routes, addresses or interfaces are others.
    pub(crate) fn changed(&self) {
        self.0.version.fetch_add(1, SeqCst);
        self.0.gone.send_if_modified(|gone| !gone.is_empty());
    }

    /// Says which addresses are the host's no more.
    pub(crate) fn set_gone(&self, addresses: BTreeSet<IpAddr>) {
        self.0.gone.send_replace(addresses.into());
    }

    /// Hears of addresses that are the host's no more.
    pub(crate) fn gone(&self) -> watch::Receiver<Arc<BTreeSet<IpAddr>>> {
        self.0.gone.subscribe()
    }

    /// Says whether NAT may change the sources of what is sent; true where it may, and it was not said before.
    pub(crate) fn set_translating(&self, translating: bool) -> bool {
        !self.0.translating.swap(translating, SeqCst) && translating
    }

    /// Which addresses are the host's.
    pub(crate) fn host_addresses(&self) -> &HostAddresses {
        &self.0.host_addresses
    }

    fn version(&self) -> u64 {
        self.0.version.load(SeqCst)
    }

    fn of(&self, family: Family) -> Discernment {
        let rules = self.0.rules.read().unwrap_or_else(PoisonError::into_inner);
        rules[family as usize].clone()
    }
}

/// What began a flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct First<'a> {
    pub(crate) protocol: Protocol,
    pub(crate) client: ClientAddr,
    pub(crate) dst: OriginalDst,
    /// Where a socket of ours is to go.
    pub(crate) to: SocketAddr,
    pub(crate) origin: &'a Origin,
    pub(crate) class: TrafficClass,
}

/// The ways that a worker knows.
pub(crate) struct Ways {
    routing: Routing,
    mark: Mark,
    /// By family.
    rules: [Discernment; 2],
    version: Option<u64>,
    known: HashMap<RoutedPacket, Result<Option<u32>, NoRoute>>,
    asker: Asker,
}

/// There is no route for the client, whatever there is for us: the error's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NoRoute(Errno);

impl Ways {
    pub(crate) fn new(routing: Routing, mark: Mark) -> Self {
        Self {
            routing,
            mark,
            rules: Default::default(),
            version: None,
            known: HashMap::new(),
            asker: Asker::default(),
        }
    }

    /// Whether NAT may change the sources of what is sent.
    pub(crate) fn translates_sources(&self) -> bool {
        self.routing.0.translating.load(SeqCst)
    }

    /// Whether NAT has redirected a flow of a rule to this host, whose applications would answer the client, and not us.
    pub(crate) fn is_redirected(&self, rule: &KeptRule, to: IpAddr) -> bool {
        rule.reach.scope == Scope::Forwarded
            && rule.treatment.action == Action::Direct
            && self.routing.host_addresses().contains(to)
    }

    /// What a socket towards the upstream of a flow has of the packet that began the flow: its mark, its sender, and what the
    /// sender's socket is bound to; and the table that it would have left by.
    ///
    /// # Errors
    /// What the client would have been told: routing has no way for its packets, or one that refuses them.
    pub(crate) fn egress(&mut self, rule: &KeptRule, first: &First<'_>) -> io::Result<Egress> {
        let First { origin, .. } = *first;
        let is_direct = rule.treatment.action == Action::Direct;
        // A sender bound to `lo` has chosen how its packets get to us.
        let device = NonZeroU32::new(origin.device).filter(|device| device.get() != LOOPBACK && is_direct);
        let uid = (rule.reach.scope == Scope::Outbound).then_some(origin.uid);
        let own = Egress { mark: self.mark, bits: origin.mark, uid, device };
        if rule.treatment.egress.chooses() {
            return self.chosen(rule, first, own);
        }
        // An upstream that is given is reached as any process of this host reaches it.
        if !is_direct {
            return Ok(own);
        }
        let table = self.table(rule.reach.scope, first, device)?;
        Ok(Egress { uid: table.and_then(uid_for).or(uid), ..own })
    }

    /// The way that a rule chooses.
    fn chosen(&mut self, rule: &KeptRule, first: &First<'_>, own: Egress) -> io::Result<Egress> {
        self.catch_up();
        let RuleEgress { interface, mark, source } = &rule.treatment.egress;
        let bits = mark.map_or(own.bits, |mark| mark.over(own.bits));
        let device = match interface {
            Some(name) => Some(links::index_of(name).ok_or_else(|| {
                let text = format!("there is no interface '{name}', by which the rule has it leave");
                io::Error::new(io::ErrorKind::NetworkUnreachable, text)
            })?),
            None => own.device,
        };
        let family = Family::of(first.to.ip());
        let packet = RoutedPacket {
            iif: 0,
            oif: device.map_or(0, NonZeroU32::get),
            from: source
                .filter(|source| Family::of(*source) == family)
                .map(|source| SocketAddr::new(source, 0)),
            to: SocketAddr::new(first.to.ip(), 0),
            protocol: None,
            mark: bits,
            uid: own.uid.unwrap_or_default(),
            class: first.class.without_ecn(),
        };
        let tables = self.rules[family as usize].tables.clone();
        let mut table = self.ask(&packet).ok().flatten().filter(|table| tables.contains(table));
        if device.is_some() && table.is_none() {
            // No rule leads to a table that has the interface: one of those that there are may have it all the same.
            table = tables.into_iter().find(|table| {
                let uid = uid_for(*table).unwrap_or_default();
                let packet = RoutedPacket { mark: self.mark.own(), uid, ..packet };
                self.ask(&packet) == Ok(Some(*table))
            });
        }
        Ok(Egress { bits, device, uid: table.and_then(uid_for).or(own.uid), ..own })
    }

    /// The table by which the client's packet would leave, where a socket of ours might do so by another.
    fn table(
        &mut self,
        scope: Scope,
        first: &First<'_>,
        device: Option<NonZeroU32>,
    ) -> io::Result<Option<u32>> {
        self.catch_up();
        let First { protocol, client, dst, origin, class, .. } = *first;
        let rules = &self.rules[Family::of(dst.0.ip()) as usize];
        let (told, iif) = match scope {
            Scope::Forwarded => (rules.clients && origin.ifindex != 0, origin.ifindex),
            Scope::Outbound => (rules.processes, 0),
            Scope::Inbound => (false, 0),
        };
        if !told {
            return Ok(None);
        }
        let port_of =
            |address: SocketAddr| SocketAddr::new(address.ip(), if rules.ports { address.port() } else { 0 });
        let packet = RoutedPacket {
            iif,
            oif: device.map_or(0, NonZeroU32::get),
            from: Some(port_of(client.0)),
            to: port_of(dst.0),
            protocol: rules.ports.then_some(protocol),
            mark: origin.mark,
            uid: origin.uid,
            class: class.without_ecn(),
        };
        match self.ask(&packet) {
            // Others there are no rules of ours for.
            Ok(table) => {
                let rules = &self.rules[Family::of(dst.0.ip()) as usize];
                Ok(table.filter(|table| rules.tables.contains(table)))
            }
            Err(NoRoute(errno)) => Err(errno.into()),
        }
    }

    fn catch_up(&mut self) {
        let version = self.routing.version();
        if self.version != Some(version) {
            self.version = Some(version);
            self.rules = Family::BOTH.map(|family| self.routing.of(family));
            self.known.clear();
        }
    }

    fn ask(&mut self, packet: &RoutedPacket) -> Result<Option<u32>, NoRoute> {
        if let Some(answer) = self.known.get(packet) {
            return *answer;
        }
        let answer = match self.asker.table_of(packet) {
            Ok(table) => Ok(table),
            Err(error) => match refusal(packet, &error) {
                Some(refusal) => Err(refusal),
                None => {
                    tracing::debug!(?packet, %error, "cannot ask for a route");
                    return Ok(None);
                }
            },
        };
        if self.known.len() >= MOST {
            self.known.clear();
        }
        self.known.insert(*packet, answer);
        answer
    }
}

/// Whether the answer is that the packet is not to leave: a route that is missing, `unreachable`, `prohibit` or
/// `blackhole`. What this host does not forward, it relays all the same.
fn refusal(packet: &RoutedPacket, error: &io::Error) -> Option<NoRoute> {
    let errno = Errno::from_io_error(error)?;
    match errno {
        // `ip_route_input_slow` says so, too, of what comes in where nothing is forwarded.
        Errno::HOSTUNREACH if packet.iif != 0 && !forwards(packet) => None,
        Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::ACCESS => Some(NoRoute(errno)),
        // A black hole, which says nothing to anybody.
        Errno::INVAL => Some(NoRoute(Errno::NETUNREACH)),
        _ => None,
    }
}

fn forwards(packet: &RoutedPacket) -> bool {
    let value = links::name_of(packet.iif)
        .and_then(|name| Sysctl::new(&name, Family::of(packet.to.ip()), "forwarding").ok()?.read().ok());
    value.as_deref() != Some("0")
}
