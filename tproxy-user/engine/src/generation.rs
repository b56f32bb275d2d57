//! The rules over time. A reload makes a new generation of them; a flow that was decided before keeps the one it was
//! decided by, and a generation lasts as long as one of its flows.

use std::{
    ops::Deref,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use tokio::sync::Notify;
use tproxy_common::{abi, rule::MAX_RULES};

use crate::{
    config::{Claim, Config, Reach, Rule, SessionLimits, Timeouts, Treatment},
    decider::Decider,
    flow::ClientAddr,
    limits::{Full, Limits, Place},
    upstreams::{Pool, Pools},
};

/// A rule, counted over all generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RuleNumber(pub abi::RuleNumber);

impl RuleNumber {
    const fn generation(self) -> u32 {
        self.0 / MAX_RULES as u32
    }

    const fn index(self) -> usize {
        self.0 as usize % MAX_RULES
    }
}

/// What is kept of a rule for as long as it has flows: all but the values by which it selects them, which are the datapath's
/// business, and may be many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptRule {
    /// Shown in logs and counters.
    pub name: Arc<str>,
    /// Which traffic it looks at.
    pub reach: Reach,
    /// How its flows are treated.
    pub treatment: Treatment,
}

impl<'a> From<&'a KeptRule> for Claim<'a> {
    fn from(rule: &'a KeptRule) -> Self {
        Self { reach: &rule.reach, treatment: &rule.treatment }
    }
}

impl From<&Rule> for KeptRule {
    fn from(rule: &Rule) -> Self {
        let Rule { name, selector, treatment } = rule;
        Self { name: Arc::clone(name), reach: selector.reach.clone(), treatment: treatment.clone() }
    }
}

/// What the flows that it decided go by.
#[derive(Debug)]
pub struct Generation {
    number: u32,
    rules: Arc<[KeptRule]>,
    limits: Limits,
    pools: Pools,
    timeouts: Timeouts,
    sessions: SessionLimits,
    ended: Arc<Notify>,
}

impl Generation {
    /// The first, which is number 0. `ended` hears of the end of each generation.
    #[must_use]
    pub fn first(config: &Config, ended: Arc<Notify>) -> Self {
        Self::new(0, config, Limits::of(config, None), Pools::of(&config.rules, None), ended)
    }

    fn new(number: u32, config: &Config, limits: Limits, pools: Pools, ended: Arc<Notify>) -> Self {
        Self {
            number,
            rules: config.rules.iter().map(KeptRule::from).collect(),
            limits,
            pools,
            timeouts: config.timeouts,
            sessions: config.sessions,
            ended,
        }
    }

    /// The one that comes after this. A rule that keeps its name keeps count of its connections, and an upstream that stays as
    /// it is what is known of it.
    #[must_use]
    pub fn next(&self, config: &Config) -> Self {
        let limits = Limits::of(config, Some((&self.rules, &self.limits)));
        let pools = Pools::of(&config.rules, Some(&self.pools));
        Self::new((self.number + 1) % abi::GENERATIONS, config, limits, pools, Arc::clone(&self.ended))
    }

    /// Its number; they are used again after a million.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// Its rules, in order.
    #[must_use]
    pub const fn rules(&self) -> &Arc<[KeptRule]> {
        &self.rules
    }

    /// The servers that its rules go by, those of each group once.
    #[must_use]
    pub fn upstreams(&self) -> Vec<Arc<Pool>> {
        self.pools.all()
    }

    /// Time limits where a rule has none of its own.
    #[must_use]
    pub const fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// How many UDP sessions there may be, in all workers.
    #[must_use]
    pub const fn sessions(&self) -> SessionLimits {
        self.sessions
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.ended.notify_one();
    }
}

/// The generations whose rules may yet be asked for, the latest last. A handle: all workers share them.
#[derive(Debug, Clone)]
pub struct Generations {
    all: Arc<RwLock<Vec<Arc<Generation>>>>,
    added: Arc<Notify>,
    decider: Decider,
}

impl Generations {
    /// Only this one.
    #[must_use]
    pub fn of(first: Generation) -> Self {
        Self {
            all: Arc::new(RwLock::new(vec![Arc::new(first)])),
            added: Arc::default(),
            decider: Decider::default(),
        }
    }

    /// Who decides by the latest, where the datapath has forgotten what it decided.
    pub(crate) const fn decider(&self) -> &Decider {
        &self.decider
    }

    /// The generation that was added last.
    ///
    /// # Panics
    /// Never: [`Self::remove`] leaves one.
    #[must_use]
    pub fn latest(&self) -> Arc<Generation> {
        Arc::clone(self.read().last().expect("there always is one"))
    }

    /// The rule that selected a flow; none where its generation was removed long ago.
    #[must_use]
    pub fn rule(&self, number: RuleNumber) -> Option<ChosenRule> {
        let generations = self.read();
        let of_number = |generation: &&Arc<Generation>| generation.number == number.generation();
        let generation = generations.iter().rev().find(of_number)?;
        let index = number.index();
        (index < generation.rules.len()).then(|| ChosenRule { generation: Arc::clone(generation), index })
    }

    /// Before the datapath decides by it.
    pub fn add(&self, generation: Generation) {
        self.write().push(Arc::new(generation));
        self.added.notify_waiters();
    }

    /// Completes when another was added after this call.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> + use<> {
        Arc::clone(&self.added).notified_owned()
    }

    /// When nothing can ask for it any more; the flows that have it keep it. The only one stays.
    pub fn remove(&self, number: u32) {
        let mut generations = self.write();
        if generations.len() > 1 {
            generations.retain(|generation| generation.number != number);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Arc<Generation>>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<Arc<Generation>>> {
        self.all.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rule that a flow goes by to its end.
#[derive(Debug, Clone)]
pub struct ChosenRule {
    generation: Arc<Generation>,
    index: usize,
}

impl ChosenRule {
    /// The generation it is of.
    #[must_use]
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// The servers of its upstream, where it names some.
    pub(crate) fn pool(&self) -> Option<&Arc<Pool>> {
        self.generation.pools.of_rule(self.index)
    }

    /// A place for one more connection of a client under the limits.
    pub(crate) fn place(&self, client: ClientAddr) -> Result<Place, Full> {
        self.generation.limits.place(self.index, self.reach.scope, client)
    }
}

impl Deref for ChosenRule {
    type Target = KeptRule;

    fn deref(&self) -> &KeptRule {
        &self.generation.rules[self.index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Action, RuleLimits, Scope};

    fn config(rules: &[(&str, Option<usize>)]) -> Config {
        let rules = rules.iter().map(|(name, most)| {
            let connections = most.and_then(std::num::NonZeroUsize::new);
            let limits = RuleLimits { connections, ..RuleLimits::default() };
            Rule::new(name, Scope::Inbound, Treatment { limits, ..Action::Direct.into() })
        });
        let text = "[[rules]]\nscope = \"inbound\"\naction = \"direct\"";
        let parsed = crate::config::parse("tproxy.toml".as_ref(), text.as_bytes()).unwrap();
        Config { rules: rules.collect(), ..parsed }
    }

    fn number(generation: u32, index: u32) -> RuleNumber {
        RuleNumber(abi::rule_number(generation, index))
    }

    #[test]
    fn a_number_finds_the_rule_of_its_own_generation() {
        let generations =
            Generations::of(Generation::first(&config(&[("a", None), ("b", None)]), Arc::default()));
        generations.add(generations.latest().next(&config(&[("c", None)])));
        let name = |number| generations.rule(number).map(|rule| rule.name.to_string());
        assert_eq!(name(number(0, 0)).as_deref(), Some("a"));
        assert_eq!(name(number(0, 1)).as_deref(), Some("b"));
        assert_eq!(name(number(1, 0)).as_deref(), Some("c"));
        assert_eq!(name(number(1, 1)), None);
        assert_eq!(name(number(2, 0)), None);
    }

    #[test]
    fn a_flow_keeps_its_rule_and_the_end_of_the_last_is_told() {
        let ended = Arc::new(Notify::new());
        let generations = Generations::of(Generation::first(&config(&[("a", None)]), Arc::clone(&ended)));
        let flow = generations.rule(number(0, 0)).unwrap();
        generations.remove(0);
        assert!(generations.rule(number(0, 0)).is_some(), "the only one stays");
        generations.add(generations.latest().next(&config(&[("b", None)])));
        generations.remove(0);
        assert!(generations.rule(number(0, 0)).is_none());
        assert_eq!(&*flow.name, "a");
        let told = || futures_util::FutureExt::now_or_never(ended.notified()).is_some();
        assert!(!told());
        drop(flow);
        assert!(told());
    }

    #[test]
    fn a_limit_counts_the_connections_of_earlier_generations() {
        let generations = Generations::of(Generation::first(&config(&[("a", Some(2))]), Arc::default()));
        let first = generations.rule(number(0, 0)).unwrap();
        let client = ClientAddr(([10, 0, 0, 1], 1).into());
        let places = [first.place(client), first.place(client)];
        assert!(places.iter().all(Result::is_ok) && first.place(client).is_err());
        generations.add(generations.latest().next(&config(&[("new", None), ("a", Some(3))])));
        let next = generations.rule(number(1, 1)).unwrap();
        let third = next.place(client);
        assert!(third.is_ok() && next.place(client).is_err());
        drop(places);
        assert!(next.place(client).is_ok());
    }

    #[test]
    fn numbers_begin_again_before_they_mean_something_else() {
        let last = abi::rule_number(abi::GENERATIONS - 1, MAX_RULES as u32 - 1);
        assert!(last < abi::CARRY);
        let number = RuleNumber(last);
        assert_eq!((number.generation(), number.index()), (abi::GENERATIONS - 1, MAX_RULES - 1));
        let limits = Limits::of(&config(&[]), None);
        let generation =
            Generation::new(abi::GENERATIONS - 1, &config(&[]), limits, Pools::default(), Arc::default());
        assert_eq!(generation.next(&config(&[])).number(), 0);
    }
}
