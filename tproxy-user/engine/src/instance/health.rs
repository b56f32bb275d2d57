//! What keeps an instance from having all that its rules need, and when that is tried again.

use std::time::{Duration, Instant};

use super::InstanceError;
use crate::host::links::Changed;

/// How long after a failure it is tried again; twice that after the next one, and so on.
const FIRST: Duration = Duration::from_millis(100);

/// And at most.
const LONGEST: Duration = Duration::from_secs(10);

/// How often it is looked at what the kernel gives no word of: sysctls, and hooks that somebody detaches.
const AUDIT: Duration = Duration::from_secs(2);

/// How an instance is from the point of view of what it needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// What is missing, and why, a line each.
    pub missing: Vec<String>,
    /// How often something could not be had.
    pub failures: u64,
    /// How often something was put back that others had taken away.
    pub restored: u64,
}

/// When to look at what.
#[derive(Debug)]
pub(super) struct Convergence {
    health: Health,
    /// What there is word of and was not yet looked at, or in vain.
    pending: Changed,
    /// The rules' tables are not what the surroundings ask for.
    pub(super) stale: bool,
    /// Attempts since everything was there and stayed.
    attempts: u32,
    /// When it is tried again.
    again: Option<Instant>,
    audit: Instant,
}

/// What came of one attempt.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    pub(super) errors: Vec<InstanceError>,
    /// What has to be looked at once more.
    pub(super) pending: Changed,
    /// How much was put back.
    pub(super) restored: usize,
}

impl Attempt {
    pub(super) fn note(&mut self, outcome: Result<(), impl Into<InstanceError>>) {
        self.errors.extend(outcome.err().map(Into::into));
    }
}

impl Convergence {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            health: Health::default(),
            pending: Changed::NOTHING,
            stale: true,
            attempts: 0,
            again: None,
            audit: now + AUDIT,
        }
    }

    pub(super) const fn health(&self) -> &Health {
        &self.health
    }

    /// Counts what was put back.
    pub(super) fn restored(&mut self, count: usize) {
        self.health.restored += count as u64;
    }

    /// Takes word of a change, and says whether to act on it now: what undoes our own doing is not answered at once for
    /// ever.
    pub(super) fn hear(&mut self, changed: Changed) -> bool {
        self.pending = self.pending.and(changed);
        self.again.is_none() || changed.links || changed.local_table || changed.cgroups
    }

    /// When something has to be looked at without word of a change.
    pub(super) fn due(&self) -> Instant {
        self.again.map_or(self.audit, |again| again.min(self.audit))
    }

    /// What to look at now.
    pub(super) fn begin(&mut self, now: Instant) -> Changed {
        let audit = if now >= self.audit { Changed::OURS } else { Changed::NOTHING };
        self.audit = now + AUDIT;
        self.again = None;
        std::mem::replace(&mut self.pending, Changed::NOTHING).and(audit)
    }

    /// Notes what came of it.
    pub(super) fn end(&mut self, now: Instant, attempt: &Attempt) {
        let missing: Vec<String> = attempt.errors.iter().map(ToString::to_string).collect();
        for error in missing.iter().filter(|error| !self.health.missing.contains(error)) {
            tracing::error!("{error}; it is tried again until it succeeds");
        }
        if missing.is_empty() && !self.health.missing.is_empty() {
            tracing::info!("what was missing is in place");
        }
        self.health.failures += missing.len() as u64;
        self.health.restored += attempt.restored as u64;
        self.health.missing = missing;
        self.pending = self.pending.and(attempt.pending);
        if self.health.missing.is_empty() && attempt.restored == 0 && attempt.pending == Changed::NOTHING {
            self.attempts = 0;
            return;
        }
        self.again = Some(now + back_off(self.attempts));
        self.attempts = self.attempts.saturating_add(1);
    }
}

fn back_off(attempts: u32) -> Duration {
    FIRST.saturating_mul(1 << attempts.min(16)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Attempt {
        let errors = vec![InstanceError::Fixed(vec!["eth0"])];
        Attempt { errors, pending: Changed::EVERYTHING, restored: 0 }
    }

    #[test]
    fn what_fails_is_tried_again_ever_more_seldom_until_it_succeeds() {
        let now = Instant::now();
        let mut convergence = Convergence::new(now);
        let mut waits = Vec::new();
        for _ in 0..12 {
            convergence.begin(now);
            convergence.end(now, &failed());
            waits.push(convergence.again.unwrap() - now);
        }
        assert!(waits.is_sorted() && waits[0] == FIRST && waits[11] == LONGEST, "{waits:?}");
        assert_eq!((convergence.health().missing.len(), convergence.health().failures), (1, 12));
        assert_eq!(convergence.begin(now), Changed::EVERYTHING, "what failed is looked at again");
        convergence.end(now, &Attempt::default());
        assert_eq!((convergence.again, convergence.health().missing.len()), (None, 0));
        convergence.begin(now);
        convergence.end(now, &failed());
        assert_eq!(convergence.again, Some(now + FIRST), "patience is new each time");
    }

    #[test]
    fn who_takes_away_all_the_time_is_not_answered_at_once() {
        let now = Instant::now();
        let mut convergence = Convergence::new(now);
        assert!(convergence.hear(Changed::OURS));
        convergence.begin(now);
        convergence.end(now, &Attempt { restored: 1, ..Attempt::default() });
        assert_eq!(convergence.health().restored, 1);
        assert!(!convergence.hear(Changed::OURS));
        assert!(convergence.hear(Changed { links: true, ..Changed::NOTHING }));
        assert!(convergence.due() <= now + FIRST, "but soon");
    }

    #[test]
    fn what_there_is_no_word_of_is_looked_at_now_and_then() {
        let now = Instant::now();
        let mut convergence = Convergence::new(now);
        assert_eq!(convergence.begin(now), Changed::NOTHING);
        let later = convergence.due();
        assert!(later > now);
        assert_eq!(convergence.begin(later), Changed::OURS);
        assert!(convergence.due() > later);
    }
}
