//! What the service manager is told (sd_notify(3)): nothing where none listens, which is what `$NOTIFY_SOCKET` says.

use std::time::Duration;

use futures_util::future::join_all;
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tproxy::worker::Pulse;

/// What a stop takes besides waiting for flows.
const STOP: Duration = Duration::from_secs(10);

/// Flows are decided by the rules.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The rules are about to change; [`ready`] has to follow.
pub(super) fn reloading() {
    // `Type=notify-reload` tells by the time whether the reload that it asked for is meant (systemd.service(5)).
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!("cannot read the monotonic clock: {error}"),
    }
}

/// No new flow is taken, and live ones have `limit`. `TimeoutStopSec=` need not know of it.
pub(super) fn stopping(live: usize, limit: Duration) {
    let within = u32::try_from((limit + STOP).as_micros()).unwrap_or(u32::MAX);
    let status = format!("draining: {live} live");
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(within), NotifyState::Status(&status)]);
}

/// Says twice within the time that `WatchdogSec=` gives that all threads answer whose pulses these are, while they do.
pub(super) async fn say_alive(threads: Vec<Pulse>) {
    let Some(within) = sd_notify::watchdog_enabled().filter(|within| !within.is_zero()) else { return };
    let mut ticks = interval(within / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !answering(&threads).await {
            return;
        }
        tell(&[NotifyState::Watchdog]);
    }
}

/// Completes when everybody has answered: false if somebody never will.
async fn answering(threads: &[Pulse]) -> bool {
    join_all(threads.iter().map(Pulse::felt)).await.into_iter().all(|felt| felt)
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell the service manager; NOTIFY_SOCKET says where it listens");
    }
}

#[cfg(test)]
mod tests {
    use tokio::{sync::oneshot, time::timeout};

    use super::*;

    /// As a thread that answers so many times, and then hangs.
    fn thread(times: usize) -> Pulse {
        let (pulse, mut asked) = Pulse::new();
        tokio::spawn(async move {
            for _ in 0..times {
                let reply: oneshot::Sender<()> = asked.recv().await.unwrap();
                reply.send(()).unwrap();
            }
            std::future::pending::<()>().await;
            drop(asked);
        });
        pulse
    }

    async fn answers(threads: &[Pulse]) -> Option<bool> {
        timeout(Duration::from_millis(200), answering(threads)).await.ok()
    }

    #[tokio::test]
    async fn alive_is_who_answers_in_every_thread() {
        let threads = [thread(3), thread(1)];
        assert_eq!(answers(&threads).await, Some(true));
        assert_eq!(answers(&threads).await, None, "one hangs");
        assert_eq!(answers(&threads[..1]).await, Some(true));
        let (gone, asked) = Pulse::new();
        drop(asked);
        assert_eq!(answers(&[gone]).await, Some(false));
    }
}
