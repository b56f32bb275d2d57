//! How often something may be done.

use std::time::Instant;

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
}
