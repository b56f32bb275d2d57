//! The rules that hold, for who has to decide about a connection once more that the datapath has decided and then forgotten:
//! its map of decisions keeps what was used last. Nothing is counted or told of here, which was done at the first packet.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use tproxy_common::{
    abi::{Origin, rule_number},
    flow::{Flow, Protocol, Tuple},
    policy::decide,
    rule::{RuleIndex, Scope},
    verdict::Verdict,
};

use crate::{
    family::Family,
    flow::{ClientAddr, OriginalDst},
    generation::RuleNumber,
    host::{
        connections,
        local_table::{HostAddresses, LOOPBACK},
    },
    mark::Mark,
    policy::{Cgroup, Compiled, HostLookups},
    socket,
    tcp::Decided,
};

/// A handle: the instance says what holds, and its workers ask.
#[derive(Debug, Clone, Default)]
pub(crate) struct Decider(Arc<RwLock<Known>>);

#[derive(Debug, Default)]
struct Known {
    rules: Option<(u32, Arc<Compiled>)>,
    hosts: HostAddresses,
}

/// What an accepted connection still tells of its first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Accepted {
    client: SocketAddr,
    dst: SocketAddr,
    /// Where it was to go before NAT of this host sent it to `dst`.
    before_nat: SocketAddr,
    /// The interface by which it came in, if that is known.
    ifindex: Option<u32>,
}

/// The process that has connected, in scope `outbound`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Sender {
    uid: u32,
    /// Its cgroup and those above it, from the deepest up.
    cgroups: Vec<Cgroup>,
    mark: u32,
    device: u32,
}

impl Decider {
    /// Says that flows are decided by these rules.
    pub(crate) fn set_rules(&self, generation: u32, rules: Arc<Compiled>) {
        self.write().rules = Some((generation, rules));
    }

    /// Says who knows which addresses are the host's own.
    pub(crate) fn set_hosts(&self, hosts: HostAddresses) {
        self.write().hosts = hosts;
    }

    /// Whether an address is one of the host's own.
    pub(crate) fn is_host_address(&self, addr: IpAddr) -> bool {
        self.read().hosts.contains(addr)
    }

    /// The rule that selects an accepted connection, where what is known of it leaves no doubt. The bits of `own` in a mark
    /// are ours, and not the sender's.
    pub(crate) fn connection(
        &self,
        accepted: &impl AsFd,
        ClientAddr(client): ClientAddr,
        OriginalDst(dst): OriginalDst,
        own: Mark,
    ) -> Option<Decided> {
        let family = Family::of(dst.ip());
        let accepted = Accepted {
            client,
            dst,
            before_nat: socket::destination_before_nat(accepted, family).unwrap_or(dst),
            ifindex: socket::arrival_interface(accepted, family),
        };
        let mut decided = self.read().decide(&accepted, sender)?;
        decided.origin.mark &= !own.mask();
        Some(decided)
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// It was steered, and so by a rule that steers: where more than one may have been it, none is.
    fn decide(
        &self,
        accepted: &Accepted,
        sender: impl Fn(&Accepted, &Compiled) -> Option<Sender>,
    ) -> Option<Decided> {
        let (generation, compiled) = self.rules.as_ref()?;
        for (scope, dst) in self.seen(accepted) {
            let sender = match scope {
                Scope::Outbound => match sender(accepted, compiled) {
                    Some(sender) => sender,
                    None if compiled.uids.is_empty() && compiled.cgroups.is_empty() => Sender::default(),
                    None => return None,
                },
                Scope::Forwarded | Scope::Inbound => Sender::default(),
            };
            let ifindex = match scope {
                Scope::Outbound => Some(sender.device),
                Scope::Forwarded | Scope::Inbound => accepted.ifindex,
            };
            match self.steering(compiled, accepted, (scope, dst), ifindex, &sender)[..] {
                [] => {}
                [rule] => {
                    let Sender { uid, mark, device, .. } = sender;
                    let ifindex = ifindex.filter(|_| scope == Scope::Forwarded).unwrap_or_default();
                    return Some(Decided {
                        rule: RuleNumber(rule_number(*generation, rule)),
                        origin: Origin { mark, uid, ifindex, device },
                    });
                }
                _ => return None,
            }
        }
        None
    }

    /// The rules that may have steered it.
    fn steering(
        &self,
        compiled: &Compiled,
        accepted: &Accepted,
        (scope, dst): (Scope, SocketAddr),
        ifindex: Option<u32>,
        sender: &Sender,
    ) -> Vec<RuleIndex> {
        let lookups = HostLookups {
            compiled,
            is_host_address: &|addr| self.hosts.contains((*addr).into()),
            is_publishing: dst != accepted.dst,
            sender_cgroups: &sender.cgroups,
        };
        let tuple = Tuple {
            src: accepted.client.ip().into(),
            dst: dst.ip().into(),
            sport: accepted.client.port().to_be_bytes(),
            dport: dst.port().to_be_bytes(),
        };
        let rule = |ifindex| {
            let flow = Flow { protocol: Protocol::Tcp, tuple, ifindex, uid: sender.uid };
            match decide(scope, &flow, &lookups) {
                Verdict::Steer(rule) => Some(rule),
                _ => None,
            }
        };
        let known = ifindex.filter(|ifindex| compiled.interfaces.contains_key(ifindex));
        let rules: BTreeSet<RuleIndex> = match known {
            Some(ifindex) => rule(ifindex).into_iter().collect(),
            // One that no rule names is as good as any other such.
            None => compiled.interfaces.keys().copied().chain([0]).filter_map(rule).collect(),
        };
        rules.into_iter().collect()
    }

    /// The scopes that it may have been seen in, in their order, and the destination that it had there: tc sees packets
    /// before NAT of this host does, and `sk_lookup` after that.
    fn seen(&self, accepted: &Accepted) -> Vec<(Scope, SocketAddr)> {
        let Accepted { client, dst, before_nat, ifindex } = *accepted;
        let is_host_address = |address: SocketAddr| self.hosts.contains(address.ip());
        match (is_host_address(before_nat), is_host_address(dst)) {
            (_, false) if ifindex == Some(LOOPBACK) && is_host_address(client) => {
                vec![(Scope::Outbound, dst)]
            }
            (true, true) => vec![(Scope::Inbound, dst)],
            (false, true) => vec![(Scope::Forwarded, before_nat), (Scope::Inbound, dst)],
            (_, false) => vec![(Scope::Forwarded, before_nat)],
        }
    }
}

/// The process at the other end, if it can be found out who that is.
fn sender(accepted: &Accepted, compiled: &Compiled) -> Option<Sender> {
    let interfaces = compiled.interfaces.keys().copied();
    let owner = match connections::owner(accepted.client, accepted.dst, interfaces) {
        Ok(owner) => owner?,
        Err(error) => {
            tracing::debug!(client = %accepted.client, dst = %accepted.dst, %error, "cannot ask who has connected");
            return None;
        }
    };
    // Looking for it takes a walk through all there are.
    let cgroups = if compiled.cgroups.is_empty() { Vec::new() } else { Cgroup::lineage_of(owner.cgroup?)? };
    Some(Sender { uid: owner.uid, cgroups, mark: owner.mark, device: owner.device })
}

#[cfg(test)]
mod tests;
