//! One thread, one runtime, its own listeners: TCP's are served by [`tcp`], UDP's by [`udp`].

use std::{io, panic::resume_unwind, sync::mpsc::sync_channel, thread, time::Duration};

use tokio::{
    runtime::{Builder, LocalOptions, LocalRuntime},
    sync::{mpsc, oneshot},
    task::{JoinSet, spawn_blocking},
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{live::LiveCount, tcp, udp};

/// What a worker is made of.
pub struct WorkerSetup {
    /// Shown in the thread's name; it is `tproxy-w0` for 0.
    pub index: usize,
    /// How many there are.
    pub workers: usize,
    /// What it needs for TCP.
    pub tcp: tcp::Setup,
    /// What it needs for UDP, where some rule is about it.
    pub udp: Option<udp::Setup>,
    /// Where it says that it goes round.
    pub beat: Option<Box<dyn Beat>>,
    /// What it has done now and then.
    pub upkeep: Option<Box<dyn Upkeep>>,
}

/// Where a worker says that it goes round.
pub trait Beat: Send {
    /// It does so now.
    fn beat(&mut self);
}

/// What is to be done now and then, by another thread, since it takes its time.
pub trait Upkeep: Send {
    /// How long it can wait.
    fn pause(&self) -> Duration;

    /// Does it.
    fn run(&mut self);
}

/// How often it is said. The datapath waits for several times that (`LONGEST_PAUSE`).
const BEAT: Duration = Duration::from_millis(500);

/// Tells whether a worker's thread goes round.
#[derive(Debug, Clone)]
pub struct Pulse(mpsc::Sender<oneshot::Sender<()>>);

impl Pulse {
    /// One, and what it asks.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<oneshot::Sender<()>>) {
        let (sender, asked) = mpsc::channel(1);
        (Self(sender), asked)
    }

    /// Completes when the worker has answered: false if it has ended.
    pub async fn felt(&self) -> bool {
        let (reply, replied) = oneshot::channel();
        self.0.send(reply).await.is_ok() && replied.await.is_ok()
    }
}

/// A running worker. Dropping it stops it, without waiting.
///
/// A stop has two steps. When no new flow is decided any more, say so by [`Worker::drain`], and wait for
/// [`Liveness::none`] as long as is wanted: the listeners stay open, since a client whose first packet was answered may
/// yet come. Then, when nothing is steered any more, [`Worker::stop_now`] and [`Worker::join`].
pub struct Worker {
    thread: thread::JoinHandle<()>,
    draining: CancellationToken,
    stop: CancellationToken,
    live: LiveCount,
    ended: CancellationToken,
    pulse: Pulse,
    _stop_when_dropped: DropGuard,
}

impl Worker {
    /// Starts a worker in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the system has no thread or no descriptor left for it.
    pub fn spawn(setup: WorkerSetup) -> io::Result<Self> {
        let live = LiveCount::default();
        let [draining, stop, ended] = std::array::from_fn(|_| CancellationToken::new());
        let name = format!("tproxy-w{}", setup.index);
        let (pulse, asked) = Pulse::new();
        let (tell, begun) = sync_channel(1);
        let thread = thread::Builder::new().name(name).spawn({
            let (live, draining, stop, ended) = (live.clone(), draining.clone(), stop.clone(), ended.clone());
            move || {
                let _ended = ended.drop_guard();
                let (outcome, services) = match Services::new(setup, live, draining) {
                    Ok(services) => (Ok(()), Some(services)),
                    Err(error) => (Err(error), None),
                };
                // Whoever spawns it waits for this.
                let _ = tell.send(outcome);
                if let Some(services) = services {
                    services.serve(asked, &stop);
                }
            }
        })?;
        begun.recv().map_err(io::Error::other)??;
        let _stop_when_dropped = stop.clone().drop_guard();
        Ok(Self { thread, draining, stop, live, ended, pulse, _stop_when_dropped })
    }

    /// TCP connections accepted that have not ended, and UDP sessions.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live.number()
    }

    /// Its pulse.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Has UDP sessions that are silent end soon: nobody else says that they are over.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// What tells when it has nothing left to do.
    #[must_use]
    pub fn liveness(&self) -> Liveness {
        Liveness { live: self.live.clone(), ended: self.ended.clone() }
    }

    /// Waits until the worker has ended: by [`Worker::stop_now`], or by a panic, which [`Worker::join`]
    /// then returns.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Resets every live connection on both sides, ends the sessions, closes the listeners and ends the worker.
    pub fn stop_now(&self) {
        self.stop.cancel();
    }

    /// Blocks until the worker has ended.
    ///
    /// # Errors
    /// The payload of the panic that ended it.
    pub fn join(self) -> thread::Result<()> {
        self.thread.join()
    }
}

/// The connections and sessions of a worker.
#[derive(Debug)]
pub struct Liveness {
    live: LiveCount,
    ended: CancellationToken,
}

impl Liveness {
    /// Waits until none is live, or the worker has ended.
    pub async fn none(&self) {
        tokio::select! {
            () = self.live.none() => {}
            () = self.ended.cancelled() => {}
        }
    }
}

/// What a worker's thread does, in a runtime that cannot leave it.
struct Services {
    /// When it is dropped at the end, so are the connections' sockets, and that resets them.
    runtime: LocalRuntime,
    tcp: tcp::Service,
    udp: Option<udp::Service>,
    beat: Option<Box<dyn Beat>>,
    upkeep: Option<Box<dyn Upkeep>>,
}

impl Services {
    fn new(setup: WorkerSetup, live: LiveCount, draining: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
        let (tcp, udp) = {
            let _inside = runtime.enter();
            let udp = setup.udp.map(|udp| udp::Service::new(udp, live.clone(), draining));
            let affinity = tcp::Affinity::of(setup.index, setup.workers);
            (tcp::Service::new(setup.tcp, live, affinity)?, udp.transpose()?)
        };
        let mut beat = setup.beat;
        // Before anybody can be given to it.
        if let Some(beat) = &mut beat {
            beat.beat();
        }
        Ok(Self { runtime, tcp, udp, beat, upkeep: setup.upkeep })
    }

    fn serve(self, mut asked: mpsc::Receiver<oneshot::Sender<()>>, stop: &CancellationToken) {
        let Self { runtime, tcp, udp, mut beat, upkeep } = self;
        runtime.block_on(async {
            let mut serving = JoinSet::new();
            tcp.serve(&mut serving);
            if let Some(udp) = udp {
                serving.spawn_local(udp.serve());
            }
            let answer = async {
                while let Some(reply) = asked.recv().await {
                    // That nobody waits any more is no failure.
                    let _ = reply.send(());
                }
            };
            let say = async {
                let Some(beat) = &mut beat else { return std::future::pending().await };
                let mut ticks = interval(BEAT);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    ticks.tick().await;
                    beat.beat();
                }
            };
            let maintain = async {
                let Some(mut upkeep) = upkeep else { return std::future::pending().await };
                loop {
                    sleep(upkeep.pause()).await;
                    let run = move || {
                        upkeep.run();
                        upkeep
                    };
                    upkeep = match spawn_blocking(run).await {
                        Ok(upkeep) => upkeep,
                        Err(error) => resume_unwind(error.into_panic()),
                    };
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = say => {}
                () = maintain => {}
                // Nobody can ask a worker that was dropped.
                () = answer => {}
                // Serving never ends but by a panic, and without it a worker is of no use.
                Some(Err(error)) = serving.join_next() => resume_unwind(error.into_panic()),
            }
        });
    }
}
