//! How often something may be done.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::flow::{ClientAddr, ClientNetwork};

/// A token bucket of one second's worth.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: u32,
    /// In thousandths, so that what comes between two looks is not lost.
    tokens: u64,
    filled: Instant,
}

impl Rate {
    pub(super) const fn new(per_second: u32, now: Instant) -> Self {
        Self { per_second, tokens: per_second as u64 * 1000, filled: now }
    }

    /// Whether it may be done now; if so, it counts as done.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        const ONE: u64 = 1000;
        let full = u64::from(self.per_second) * ONE;
        let milliseconds = now.saturating_duration_since(self.filled).as_millis() as u64;
        if milliseconds > 0 {
            self.tokens = full.min(self.tokens.saturating_add(milliseconds * u64::from(self.per_second)));
            self.filled = now;
        }
        let allowed = self.tokens >= ONE;
        if allowed {
            self.tokens -= ONE;
        }
        allowed
    }
}

/// What each client may have done, for itself.
#[derive(Debug)]
pub(super) struct Rates {
    per_second: u32,
    clients: HashMap<ClientNetwork, Rate>,
}

impl Rates {
    pub(super) fn new(per_second: u32) -> Self {
        Self { per_second, clients: HashMap::new() }
    }

    /// As [`Rate::allows`].
    pub(super) fn allows(&mut self, client: ClientAddr, now: Instant) -> bool {
        let new = || Rate::new(self.per_second, now);
        self.clients.entry(client.network()).or_insert_with(new).allows(now)
    }

    /// Forgets who has had nothing done for so long that all of it is allowed again.
    pub(super) fn forget_the_silent(&mut self, now: Instant) {
        self.clients.retain(|_, rate| now.duration_since(rate.filled) < Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_empties_it_and_time_fills_it() {
        let start = Instant::now();
        let mut rate = Rate::new(100, start);
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let burst = |rate: &mut Rate, now| (0..1000).filter(|_| rate.allows(now)).count();
        assert_eq!(burst(&mut rate, start), 100);
        assert_eq!(burst(&mut rate, at(9)), 0);
        assert_eq!(burst(&mut rate, at(50)), 5);
        assert_eq!(burst(&mut rate, at(60_000)), 100);
    }

    #[test]
    fn each_client_has_its_own() {
        let start = Instant::now();
        let mut rates = Rates::new(10);
        let client = |last| ClientAddr(([10, 0, 0, last], 1).into());
        let burst = |rates: &mut Rates, last| (0..100).filter(|_| rates.allows(client(last), start)).count();
        assert_eq!([1, 1, 2].map(|last| burst(&mut rates, last)), [10, 0, 10]);
        rates.forget_the_silent(start + Duration::from_millis(999));
        assert_eq!(rates.clients.len(), 2);
        rates.forget_the_silent(start + Duration::from_secs(1));
        assert!(rates.clients.is_empty());
    }
}
