//! Limits of live connections, by rule.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use crate::config::Rule;

/// How many connections each rule has, over all workers, and may have. Of a rule without a limit nothing is counted,
/// so that it costs no cache line shared between CPUs.
#[derive(Debug, Clone)]
pub(crate) struct Limits(Arc<[Option<Arc<Limit>>]>);

#[derive(Debug)]
struct Limit {
    most: usize,
    live: Arc<AtomicUsize>,
}

/// A connection's place under the limit of its rule, free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place(Option<Arc<Limit>>);

impl Limits {
    /// Those of `rules`. A rule goes on counting where one of its name does among the `earlier` ones.
    pub(crate) fn of(rules: &[Rule], earlier: Option<(&[Rule], &Self)>) -> Self {
        let earlier = earlier.into_iter().flat_map(|(rules, limits)| rules.iter().zip(&*limits.0));
        let counted: HashMap<&str, &Arc<Limit>> =
            earlier.filter_map(|(rule, limit)| Some((&*rule.name, limit.as_ref()?))).collect();
        let limit = |rule: &Rule| {
            let most = rule.limits.connections?.get();
            let live = counted.get(&*rule.name).map(|limit| Arc::clone(&limit.live));
            Some(Arc::new(Limit { most, live: live.unwrap_or_default() }))
        };
        Self(rules.iter().map(limit).collect())
    }

    /// A place for one more connection of the rule at `index`, if there is one.
    pub(crate) fn place(&self, index: usize) -> Option<Place> {
        let Some(limit) = &self.0[index] else { return Some(Place(None)) };
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
