//! How many files may be open (`RLIMIT_NOFILE`, getrlimit(2)).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that flows cannot have: undoing what was done to the host opens sockets and files, also when flows have
/// taken all there were.
const RESERVE: u64 = 32;

/// A connection takes two descriptors, and the usual soft limit is 1,024: enough for programs that use `select`, which
/// nothing here does.
pub(super) fn raise_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = maximum.map(|maximum| maximum - RESERVE.min(maximum / 2));
    set(Rlimit { current, maximum });
}

/// From now on there is the reserve as well. For when no new flow is taken.
pub(super) fn release_reserve() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    set(Rlimit { current: maximum, maximum });
}

fn set(limit: Rlimit) {
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("cannot change the limit of open files: {error}");
    }
}
