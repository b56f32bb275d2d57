//! How long something took, counted in buckets.

use std::{
    iter::Sum,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the buckets, in microseconds. What takes longer than the last is in one more.
pub const BOUNDS: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// Counted by one worker, read by anybody.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Latency {
    /// Counts one more that took so long. A histogram has one writer, so that no locked instruction is needed.
    pub fn observe(&self, time: Duration) {
        let add = |counter: &AtomicU64, count| counter.store(counter.load(Relaxed) + count, Relaxed);
        let bucket = BOUNDS.partition_point(|bound| u128::from(*bound) < time.as_micros());
        add(&self.buckets[bucket], 1);
        add(&self.nanoseconds, time.as_nanos() as u64);
    }

    /// What was counted, as it is now.
    #[must_use]
    pub fn snapshot(&self) -> Latencies {
        Latencies {
            buckets: std::array::from_fn(|bucket| self.buckets[bucket].load(Relaxed)),
            nanoseconds: self.nanoseconds.load(Relaxed),
        }
    }
}

/// The histogram of one or, summed, of several workers at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latencies {
    /// How many took longer than the bound before, and not longer than the bound of the same index; the last bucket has
    /// none.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// All together.
    pub nanoseconds: u64,
}

impl Latencies {
    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl Sum for Latencies {
    fn sum<I: Iterator<Item = Self>>(latencies: I) -> Self {
        latencies.fold(Self::default(), |a, b| Self {
            buckets: std::array::from_fn(|bucket| a.buckets[bucket] + b.buckets[bucket]),
            nanoseconds: a.nanoseconds + b.nanoseconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_bucket_that_is_not_too_small() {
        let latency = Latency::default();
        for time in [0, 100, 101, 10_000_000, 10_000_001] {
            latency.observe(Duration::from_micros(time));
        }
        let one = latency.snapshot();
        let expected = |bucket| match bucket {
            0 => 2,
            1 | 15 | 16 => 1,
            _ => 0,
        };
        assert_eq!(one.buckets, std::array::from_fn(expected));
        assert_eq!(one.nanoseconds, 20_000_202_000);
        let sum: Latencies = [one, one].into_iter().sum();
        assert_eq!((sum.count(), sum.nanoseconds), (10, 40_000_404_000));
    }
}
