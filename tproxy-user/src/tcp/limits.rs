//! Limits of live connections, by rule.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::{config::Rule, worker::RuleIndex};

/// How many connections each rule has, over all workers, and may have. Of a rule without a limit nothing is counted,
/// so that it costs no cache line shared between CPUs.
#[derive(Debug, Clone)]
pub struct Limits(Arc<[Option<Arc<Limit>>]>);

#[derive(Debug)]
struct Limit {
    most: usize,
    live: AtomicUsize,
}

/// A connection's place under the limit of its rule, free again when this is dropped.
pub(super) struct Place(Option<Arc<Limit>>);

impl Limits {
    /// Those of `rules`, with all places free.
    #[must_use]
    pub fn of(rules: &[Rule]) -> Self {
        let limit = |rule: &Rule| {
            let most = rule.limits.connections?.get();
            Some(Arc::new(Limit { most, live: AtomicUsize::new(0) }))
        };
        Self(rules.iter().map(limit).collect())
    }

    /// A place for one more connection of `rule`, if there is one.
    pub(super) fn place(&self, rule: RuleIndex) -> Option<Place> {
        let Some(limit) = &self.0[rule.0] else { return Some(Place(None)) };
        let one_more = |live| (live < limit.most).then_some(live + 1);
        limit.live.fetch_update(Relaxed, Relaxed, one_more).ok()?;
        Some(Place(Some(Arc::clone(limit))))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(limit) = &self.0 {
            limit.live.fetch_sub(1, Relaxed);
        }
    }
}
