//! How many connections and sessions a worker has.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{Notify, futures::Notified};

/// What is live on one worker. Nobody is woken when something begins, and when something ends only who waits for that:
/// to wake another thread for each connection would cost more than to accept it.
#[derive(Debug, Clone, Default)]
pub(crate) struct LiveCount(Arc<Ending>);

#[derive(Debug, Default)]
struct Ending {
    number: AtomicUsize,
    ended: Notify,
}

impl LiveCount {
    /// A connection or session begins.
    pub(crate) fn begin(&self) {
        self.0.number.fetch_add(1, Ordering::SeqCst);
    }

    /// One that began has ended.
    pub(crate) fn end(&self) {
        self.0.number.fetch_sub(1, Ordering::SeqCst);
        self.0.ended.notify_waiters();
    }

    pub(crate) fn number(&self) -> usize {
        self.0.number.load(Ordering::SeqCst)
    }

    /// Waits until one ends, from the time of the call.
    pub(crate) fn ended(&self) -> Notified<'_> {
        self.0.ended.notified()
    }

    /// Waits until there are none.
    pub(crate) async fn none(&self) {
        loop {
            let mut ended = pin!(self.ended());
            ended.as_mut().enable();
            if self.number() == 0 {
                return;
            }
            ended.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin, task::Context};

    use super::*;

    #[test]
    fn waiting_ends_with_the_last_one() {
        let live = LiveCount::default();
        live.begin();
        live.begin();
        let mut none = pin!(live.none());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for left in [1, 0] {
            assert!(none.as_mut().poll(&mut cx).is_pending());
            live.end();
            assert_eq!(live.number(), left);
        }
        assert!(none.as_mut().poll(&mut cx).is_ready());
    }
}
