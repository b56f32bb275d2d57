//! The CPU time of the whole machine.

use std::{fs, io, ops::Sub};

/// CPU time since the machine started, all CPUs, in seconds.
///
/// Client, server, proxy and kernel share the machine, so only its total says what a unit of work costs: work that a
/// contender moves into softirqs, or causes elsewhere, is in it too.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CpuTime {
    pub(super) user: f64,
    pub(super) system: f64,
    /// Interrupts included.
    pub(super) softirq: f64,
    /// Time in which there was nothing to do.
    pub(super) idle: f64,
}

impl CpuTime {
    pub(super) fn now() -> io::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/stat")?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/stat"))
    }

    /// The first line of `/proc/stat`, proc(5).
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
        let mut seconds =
            || Some(words.next()?.parse::<f64>().ok()? / rustix::param::clock_ticks_per_second() as f64);
        let (user, nice, system, idle) = (seconds()?, seconds()?, seconds()?, seconds()?);
        let (iowait, irq, softirq) = (seconds()?, seconds()?, seconds()?);
        Some(Self { user: user + nice, system, softirq: irq + softirq, idle: idle + iowait })
    }

    pub(super) fn busy(self) -> f64 {
        self.user + self.system + self.softirq
    }
}

impl Sub for CpuTime {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            user: self.user - earlier.user,
            system: self.system - earlier.system,
            softirq: self.softirq - earlier.softirq,
            idle: self.idle - earlier.idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_read_in_seconds() {
        let hz = rustix::param::clock_ticks_per_second();
        let ticks = |seconds: u64| seconds * hz;
        let line = [1, 2, 3, 40, 5, 6, 7, 8].map(|seconds| ticks(seconds).to_string()).join(" ");
        let time = CpuTime::parse(&format!("cpu  {line}\ncpu0 1 1 1 1\n")).unwrap();
        assert_eq!(time, CpuTime { user: 3.0, system: 3.0, softirq: 13.0, idle: 45.0 });
        assert_eq!((time - time).busy(), 0.0);
        assert_eq!(CpuTime::parse("intr 5"), None);
    }
}
