//! Warnings and errors that come by the thousand are told a few times; so often they say nothing new, and writing them
//! takes time that others need.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{Event, Level, Subscriber, callsite::Identifier};
use tracing_subscriber::{Layer, layer::Context};

/// Lines for each reason, which is the place in the code that tells it, in each [`WINDOW`].
const LINES: u32 = 10;

const WINDOW: Duration = Duration::from_secs(10);

/// Counts warnings and errors, and holds back those that are too many.
#[derive(Debug, Default)]
pub(super) struct FloodLimit(Mutex<HashMap<Identifier, Flood>>);

/// What was told for one reason.
#[derive(Debug)]
struct Flood {
    since: Instant,
    lines: u32,
    held_back: u64,
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
enum LineFate {
    /// It is written; so many like it were not, before.
    Written { held_back: u64 },
    /// It is written, and is the last one for a while.
    Last,
    /// It is not written.
    HeldBack,
}

impl Flood {
    const fn nothing(now: Instant) -> Self {
        Self { since: now, lines: 0, held_back: 0 }
    }

    fn one_more(&mut self, now: Instant) -> LineFate {
        let mut held_back = 0;
        if now.duration_since(self.since) >= WINDOW {
            held_back = self.held_back;
            *self = Self::nothing(now);
        }
        self.lines = self.lines.saturating_add(1);
        if self.lines < LINES {
            return LineFate::Written { held_back };
        }
        if self.lines == LINES {
            return LineFate::Last;
        }
        self.held_back += 1;
        LineFate::HeldBack
    }
}

impl<S: Subscriber> Layer<S> for FloodLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // The order of levels is that of verbosity. What is said below about others does not count itself.
        if *metadata.level() > Level::WARN || metadata.target() == module_path!() {
            return true;
        }
        let now = Instant::now();
        let fate = {
            let mut reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            reasons.entry(metadata.callsite()).or_insert_with(|| Flood::nothing(now)).one_more(now)
        };
        match fate {
            LineFate::Written { held_back: 0 } => true,
            LineFate::Written { held_back } => {
                tracing::warn!(held_back, "lines like the following were held back");
                true
            }
            LineFate::Last => {
                tracing::warn!(limit = LINES, time = ?WINDOW, "more lines like the following are held back for a while");
                true
            }
            LineFate::HeldBack => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_in_ten_lines_a_window() {
        let start = Instant::now();
        let mut told = Flood::nothing(start);
        let fates: Vec<_> = (0..100).map(|_| told.one_more(start)).collect();
        assert!(fates[..9].iter().all(|fate| *fate == LineFate::Written { held_back: 0 }));
        assert_eq!(fates[9], LineFate::Last);
        assert!(fates[10..].iter().all(|fate| *fate == LineFate::HeldBack));
        assert_eq!(told.one_more(start + WINDOW), LineFate::Written { held_back: 90 });
        assert_eq!(told.one_more(start + WINDOW), LineFate::Written { held_back: 0 });
    }
}
