//! How many files may be open (`RLIMIT_NOFILE`, getrlimit(2)).

use std::{
    fs::File,
    sync::{Mutex, PoisonError},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that flows cannot have: undoing what was done to the host opens sockets and files, and somebody asks how the
/// instance is, also when flows have taken all there were.
const RESERVE: u64 = 32;

/// The limit is changed by one at a time, which leaves it as it was.
static CHANGING: Mutex<()> = Mutex::new(());

/// A connection takes two descriptors, and the usual soft limit is 1,024: enough for programs that use `select`, which
/// nothing here does.
pub(super) fn raise_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = maximum.map(|maximum| maximum - RESERVE.min(maximum / 2));
    set(Rlimit { current, maximum });
}

/// From now on there is the reserve as well. For when no new flow is taken.
pub(super) fn release_reserve() {
    let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    set(Rlimit { current: maximum, maximum });
}

/// Does what may need a descriptor: one of the reserve, where flows have taken all others. What flows take of it in the
/// meantime they give back when they end.
pub(crate) fn with_some<T>(work: impl FnOnce() -> T) -> T {
    match File::open("/dev/null") {
        Ok(_) => work(),
        Err(_) => with_reserve(work),
    }
}

/// The same where it is known already that flows have all.
pub(crate) fn with_reserve<T>(work: impl FnOnce() -> T) -> T {
    let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let before = getrlimit(Resource::Nofile);
    set(Rlimit { current: before.maximum, ..before });
    let done = work();
    set(before);
    done
}

fn set(limit: Rlimit) {
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("cannot change the limit of open files: {error}");
    }
}
