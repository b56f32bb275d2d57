//! A stop has to come to its end, whatever hangs: a thread of its own waits for the same signals, and ends the process
//! when nobody else has by a deadline. The kernel then undoes what it does after any `kill -9`, and the next start or
//! `tproxy cleanup` the rest.

use std::{io, thread, time::Duration};

use rustix::process::{Signal, getpid, kill_process};
use tokio::{
    runtime::Builder,
    sync::watch,
    time::{Instant, sleep_until},
};

use super::Signals;

/// For the main loop to hear a signal; a start on a slow machine has to end before.
const HEARD: Duration = Duration::from_secs(30);

/// For a stop after a second signal, and for what a stop takes besides waiting for flows.
const STOP: Duration = Duration::from_secs(10);

/// Where the main loop says how long it is going to take.
#[derive(Debug)]
pub(super) struct LastResort(watch::Sender<Option<Instant>>);

impl LastResort {
    /// Begins to wait for signals. `has_file` is as for [`Signals::new`].
    ///
    /// # Errors
    /// When the system has no thread or no descriptor left.
    pub(super) fn arm(has_file: bool) -> io::Result<Self> {
        let (deadline, told) = watch::channel(None);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _inside = runtime.enter();
            Signals::new(has_file)?
        };
        let wait = move || {
            if runtime.block_on(overdue(signals, told)) {
                tracing::error!(
                    "the stop does not come to its end, so the process is killed: `tproxy cleanup` undoes what is left"
                );
                // The line may wait behind others, but not for long.
                thread::sleep(Duration::from_millis(100));
                let _ = kill_process(getpid(), Signal::KILL);
            }
        };
        thread::Builder::new().name("tproxy-end".into()).spawn(wait)?;
        Ok(Self(deadline))
    }

    /// The stop goes on, and waits for flows so long.
    pub(super) fn stopping(&self, limit: Duration) {
        self.0.send_replace(Some(Instant::now() + limit + STOP));
    }
}

/// Completes when a stop is overdue; false if the main loop has ended.
async fn overdue(mut signals: Signals, mut told: watch::Receiver<Option<Instant>>) -> bool {
    let mut deadline = None;
    loop {
        let late = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = late => return true,
            () = signals.stop() => {
                let within = if deadline.is_none() { HEARD } else { STOP };
                let later = Instant::now() + within;
                deadline = Some(deadline.map_or(later, |deadline| deadline.min(later)));
            }
            changed = told.changed() => {
                if changed.is_err() {
                    return false;
                }
                deadline = *told.borrow_and_update();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stop_is_overdue_at_its_deadline_and_not_when_the_main_loop_has_ended() {
        let (tell, told) = watch::channel(None);
        let waits = tokio::spawn(overdue(Signals::new(true).unwrap(), told));
        tell.send_replace(Some(Instant::now() + STOP));
        tell.send_replace(Some(Instant::now()));
        assert!(waits.await.unwrap());
        let (tell, told) = watch::channel(None);
        let waits = tokio::spawn(overdue(Signals::new(true).unwrap(), told));
        tell.send_replace(Some(Instant::now() + STOP));
        drop(tell);
        assert!(!waits.await.unwrap());
    }
}
