//! Which CPUs a worker runs on.
//!
//! The datapath gives a connection to the worker of the CPU on which its first packet came in (`worker_of_connection()`),
//! whose caches have its packets. With many connections a worker therefore stays on the CPUs that are its own. With few, it
//! goes where the kernel's scheduler sees room: a single bulk transfer would be slower next to its own client.

use std::cell::Cell;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// With so many connections a worker stays,
const MANY: usize = 16;

/// until it has no more than these. Far enough below that it does not come and go.
const FEW: usize = 4;

/// Of the thread that made it.
#[derive(Default)]
pub(crate) struct Affinity {
    /// None where the worker's own would be no fewer than all.
    cpus: Option<Cpus>,
    connections: Cell<usize>,
}

struct Cpus {
    own: CpuSet,
    /// All that the thread may use.
    all: CpuSet,
}

impl Affinity {
    /// Of the calling thread, that of the worker with this index.
    pub(crate) fn of(worker: usize, workers: usize) -> Self {
        let cpus = sched_getaffinity(None).ok().and_then(|all| {
            let own = own(&all, worker, workers)?;
            Some(Cpus { own, all })
        });
        Self { cpus, connections: Cell::default() }
    }

    /// A connection begins.
    pub(super) fn begin(&self) {
        self.connections.set(self.connections.get() + 1);
        if self.connections.get() == MANY
            && let Some(Cpus { own, .. }) = &self.cpus
        {
            run_on(own);
        }
    }

    /// One that began has ended.
    pub(super) fn end(&self) {
        self.connections.set(self.connections.get() - 1);
        if self.connections.get() == FEW
            && let Some(Cpus { all, .. }) = &self.cpus
        {
            run_on(all);
        }
    }
}

/// It fails where the CPUs were taken away meanwhile (cpuset(7)); then the kernel has chosen others already.
fn run_on(cpus: &CpuSet) {
    if let Err(error) = sched_setaffinity(None, cpus) {
        tracing::debug!(%error, "cannot choose the CPUs of a worker");
    }
}

/// The CPUs whose connections a worker is given, as `worker_of_connection()` has it. None if those are all or nothing.
fn own(all: &CpuSet, worker: usize, workers: usize) -> Option<CpuSet> {
    let mut own = CpuSet::new();
    for cpu in (worker..CpuSet::MAX_CPU).step_by(workers).filter(|cpu| all.is_set(*cpu)) {
        own.set(cpu);
    }
    (0 < own.count() && own.count() < all.count()).then_some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(numbers: &[usize]) -> CpuSet {
        let mut cpus = CpuSet::new();
        for cpu in numbers {
            cpus.set(*cpu);
        }
        cpus
    }

    #[test]
    fn a_worker_has_the_cpus_whose_connections_it_is_given() {
        for (all, worker, workers, expected) in [
            (&[0, 1][..], 0, 2, Some(&[0][..])),
            (&[0, 1], 1, 2, Some(&[1])),
            (&[4, 5, 6, 7], 1, 2, Some(&[5, 7])),
            (&[1, 1023], 1, 3, Some(&[1])),
            // One worker has them all.
            (&[0, 1], 0, 1, None),
            // Nothing comes in on a CPU of its own, or everything does.
            (&[0], 1, 2, None),
            (&[0, 2], 1, 2, None),
            (&[0, 2], 0, 2, None),
        ] {
            assert_eq!(
                own(&cpus(all), worker, workers),
                expected.map(cpus),
                "{all:?}: {worker} of {workers}"
            );
        }
    }

    #[test]
    fn a_worker_stays_as_long_as_it_has_many_connections() {
        let all = sched_getaffinity(None).unwrap();
        let affinity = Affinity::of(0, all.count() as usize);
        let runs_on = || sched_getaffinity(None).unwrap();
        for _ in 1..MANY {
            affinity.begin();
            assert_eq!(runs_on(), all);
        }
        // A machine with one CPU has no other.
        let own = affinity.cpus.as_ref().map_or(&all, |cpus| &cpus.own);
        affinity.begin();
        for _ in FEW + 1..MANY {
            assert_eq!(runs_on(), *own);
            affinity.end();
        }
        assert_eq!(runs_on(), *own);
        affinity.end();
        assert_eq!(runs_on(), all);
    }
}
