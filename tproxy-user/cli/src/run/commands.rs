//! What a running instance can be told to do. Commands are carried out one after the other, in the order in which they
//! were sent.

use std::{fmt, path::PathBuf, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tproxy::{
    config::Config,
    datapath::Filling,
    instance::{Before, Changes, Instance, Look},
};

use super::{
    loading::{Loads, Purpose, Read},
    manager,
};

/// Where commands are sent to.
pub type Commands = mpsc::Sender<Command>;

/// Commands that may wait; who sends another waits for room.
pub(super) const QUEUE: usize = 16;

/// Something to do. The reply is sent when it is done; nobody has to wait for it.
#[derive(Debug)]
pub enum Command {
    /// Read the file again, and go by it.
    Reload {
        /// Go back to the rules before unless [`Command::Confirm`] comes within this time.
        confirm: Option<Duration>,
        /// What has changed.
        reply: Reply<Changes>,
    },
    /// Keep what a reload brought that waits to be confirmed.
    Confirm {
        /// That it is kept.
        reply: Reply<()>,
    },
    /// Say what a reload of another file would change.
    Check {
        /// Where it is.
        file: PathBuf,
        /// What would change, or why it would be refused.
        reply: Reply<Changes>,
    },
    /// Stop as SIGTERM does: take no new flow, wait for the live ones, end.
    Drain {
        /// What is to be waited for.
        reply: Reply<Draining>,
    },
    /// Say how things are.
    Look {
        /// How they are.
        reply: Reply<Box<Look>>,
    },
    /// Say what came of the reloads.
    Reloads {
        /// What came of them.
        reply: Reply<Reloads>,
    },
    /// Have how full the datapath's maps are counted, which takes too long to be done here.
    Maps {
        /// Who counts.
        reply: Reply<Filling>,
    },
}

/// What is waited for before a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draining {
    /// Flows that are live.
    pub live: usize,
    /// How long they have.
    pub limit: Duration,
}

/// Reloads by what came of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reloads {
    /// The rules were taken over.
    pub applied: u64,
    /// Something was wrong, and nothing was changed.
    pub refused: u64,
    /// The rules were given up again, since nobody confirmed them.
    pub rolled_back: u64,
}

/// To whoever sent the command.
pub type Reply<T> = oneshot::Sender<Result<T, Refused>>;

/// Why a command was not carried out, on lines that each name what is wrong and the remedy. Everything is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub Vec<String>);

impl Refused {
    pub(super) fn because(text: impl fmt::Display) -> Self {
        Self(vec![text.to_string()])
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Further {
    GoOn,
    Stop,
}

/// What was begun before and waits to be gone on with.
pub(super) enum Underway {
    /// A file has been read.
    Read(Box<Read>),
    /// It is too late to confirm a reload.
    TooLate,
}

/// Who carries them out.
pub(super) struct Executor {
    /// What is read again; none when the rules came from flags.
    file: Option<PathBuf>,
    loads: Loads,
    unconfirmed: Option<Unconfirmed>,
    reloads: Reloads,
}

/// A reload that waits to be confirmed.
struct Unconfirmed {
    before: Before,
    until: Instant,
}

impl Executor {
    pub(super) fn new(file: Option<PathBuf>) -> Self {
        Self { file, loads: Loads::default(), unconfirmed: None, reloads: Reloads::default() }
    }

    pub(super) fn carry_out(&mut self, command: Command, instance: &mut Instance) -> Further {
        // That nobody waits for a reply is no failure.
        match command {
            Command::Reload { confirm, reply } => self.begin_reload(confirm, reply),
            Command::Check { file, reply } => self.loads.begin(file, Purpose::Check { reply }),
            Command::Confirm { reply } => drop(reply.send(self.confirm())),
            Command::Drain { .. } => {
                self.answer(command, instance);
                return Further::Stop;
            }
            Command::Look { .. } | Command::Reloads { .. } | Command::Maps { .. } => {
                self.answer(command, instance)
            }
        }
        Further::GoOn
    }

    /// Answers what needs no change, which is all that is done once no new flow is taken.
    pub(super) fn answer(&self, command: Command, instance: &Instance) {
        let stopping = || Refused::because("the instance is about to stop: start it anew");
        match command {
            Command::Reload { reply, .. } => drop(reply.send(Err(stopping()))),
            Command::Confirm { reply } => drop(reply.send(Err(stopping()))),
            Command::Drain { reply } => {
                drop(reply.send(Ok(Draining { live: instance.live(), limit: instance.drain_limit() })));
            }
            Command::Check { reply, .. } => drop(reply.send(Err(stopping()))),
            Command::Look { reply } => {
                drop(reply.send(instance.look().map(Box::new).map_err(Refused::because)));
            }
            Command::Reloads { reply } => drop(reply.send(Ok(self.reloads))),
            Command::Maps { reply } => drop(reply.send(Ok(instance.maps()))),
        }
    }

    /// Completes when there is something to be done that was begun before; never while there is nothing.
    pub(super) async fn prepared(&mut self) -> Underway {
        let too_late = async {
            match &self.unconfirmed {
                Some(unconfirmed) => sleep_until(unconfirmed.until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = too_late => Underway::TooLate,
            read = self.loads.next() => Underway::Read(Box::new(read)),
        }
    }

    /// Goes on with what a file was read for.
    pub(super) fn go_on(&mut self, read: Read, instance: &mut Instance) {
        let Read { purpose, config } = read;
        match purpose {
            Purpose::Check { reply } => {
                let changes = config.and_then(|it| instance.would_change(&it).map_err(Refused::because));
                drop(reply.send(changes));
            }
            Purpose::Reload { confirm, reply } => {
                let outcome = config.and_then(|config| self.reload(config, confirm, instance));
                drop(reply.send(self.told(confirm, outcome)));
            }
        }
    }

    fn begin_reload(&mut self, confirm: Option<Duration>, reply: Reply<Changes>) {
        manager::reloading();
        match self.file_to_reload() {
            Ok(file) => self.loads.begin(file, Purpose::Reload { confirm, reply }),
            Err(refused) => drop(reply.send(self.told(confirm, Err(refused)))),
        }
    }

    /// Says what came of a reload.
    fn told(
        &mut self,
        confirm: Option<Duration>,
        outcome: Result<Changes, Refused>,
    ) -> Result<Changes, Refused> {
        match &outcome {
            Ok(changes) => {
                self.reloads.applied += 1;
                tracing::info!(%changes, confirm = confirm.map(tracing::field::debug), "reloaded");
                manager::ready(&format!("reloaded: {changes}"));
            }
            Err(Refused(lines)) => {
                self.reloads.refused += 1;
                for line in lines {
                    tracing::error!("not reloaded: {line}");
                }
                manager::ready(&format!("not reloaded: {}", lines.join("; ")));
            }
        }
        outcome
    }

    fn file_to_reload(&self) -> Result<PathBuf, Refused> {
        if self.unconfirmed.is_some() {
            return Err(Refused::because(
                "an earlier reload waits to be confirmed: confirm it, or wait until it is rolled back",
            ));
        }
        self.file.clone().ok_or_else(|| {
            Refused::because("the rules came from flags: start with --config FILE, which can be read again")
        })
    }

    fn reload(
        &mut self,
        config: Config,
        confirm: Option<Duration>,
        instance: &mut Instance,
    ) -> Result<Changes, Refused> {
        // Another reload may have come meanwhile.
        self.file_to_reload()?;
        super::remark(&config);
        let before = confirm.map(|within| (instance.before(), within));
        let changes = instance.reload(config).map_err(Refused::because)?;
        self.unconfirmed =
            before.map(|(before, within)| Unconfirmed { before, until: Instant::now() + within });
        Ok(changes)
    }

    fn confirm(&mut self) -> Result<(), Refused> {
        match self.unconfirmed.take() {
            Some(_) => {
                tracing::info!("confirmed");
                Ok(())
            }
            None => Err(Refused::because(
                "no reload waits to be confirmed: it was confirmed before, or rolled back",
            )),
        }
    }

    pub(super) fn roll_back(&mut self, instance: &mut Instance) {
        let Some(Unconfirmed { before, .. }) = self.unconfirmed.take() else { return };
        self.reloads.rolled_back += 1;
        manager::reloading();
        let changes = instance.roll_back(before);
        tracing::warn!(%changes, "rolled back: the reload was not confirmed in time");
        manager::ready(&format!("rolled back: {changes}"));
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, net::TcpStream};

    use tproxy::host::links::Changed;

    use super::*;
    use tproxy::config;
    use tproxy_netns::{Family, Topology};

    /// An instance in a network of its own, whose file is replaced by each reload.
    struct Rig {
        net: Topology,
        runtime: tokio::runtime::Runtime,
        file: PathBuf,
        executor: Executor,
        instance: Option<Instance>,
    }

    impl Rig {
        fn new() -> Self {
            let net = Topology::three().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let file = std::env::temp_dir().join(format!("tproxy-{}.toml", tproxy_netns::random_suffix()));
            fs::write(&file, answering("first")).unwrap();
            let instance =
                net.gateway.enter(|| Instance::start(config::load(&file).unwrap(), false)).unwrap();
            let executor = Executor::new(Some(file.clone()));
            Self { net, runtime, file, executor, instance: Some(instance) }
        }

        fn carry_out(&mut self, command: Command) -> Further {
            let instance = self.instance.as_mut().unwrap();
            self.net.gateway.enter(|| self.executor.carry_out(command, instance))
        }

        fn reload(&mut self, text: &str, confirm: Option<Duration>) -> Result<Changes, Refused> {
            fs::write(&self.file, answering(text)).unwrap();
            let (reply, replied) = oneshot::channel();
            assert_eq!(self.carry_out(Command::Reload { confirm, reply }), Further::GoOn);
            if self.executor.loads.is_reading() {
                self.go_on();
            }
            replied.blocking_recv().unwrap()
        }

        /// With what was prepared, which is waited for.
        fn go_on(&mut self) {
            let instance = self.instance.as_mut().unwrap();
            let prepared = self.runtime.block_on(self.executor.prepared());
            self.net.gateway.enter(|| match prepared {
                Underway::Read(read) => self.executor.go_on(*read, instance),
                Underway::TooLate => self.executor.roll_back(instance),
            });
        }

        fn confirm(&mut self) -> Result<(), Refused> {
            let (reply, replied) = oneshot::channel();
            assert_eq!(self.carry_out(Command::Confirm { reply }), Further::GoOn);
            replied.blocking_recv().unwrap()
        }

        /// What a silent client is told.
        fn told(&self) -> String {
            let connected = self.net.client.enter(|| TcpStream::connect((Family::V4.public(), 80)));
            std::io::read_to_string(connected.unwrap()).unwrap().trim_end().to_owned()
        }
    }

    impl Drop for Rig {
        fn drop(&mut self) {
            if let Some(instance) = self.instance.take() {
                self.net.gateway.enter(|| instance.stop()).unwrap();
            }
            fs::remove_file(&self.file).unwrap();
        }
    }

    fn answering(text: &str) -> String {
        format!(
            "workers = 1\n[[rules]]\nscope = \"forwarded\"\ninterfaces = [\"lan\"]\naction = \"respond={text}\"\n"
        )
    }

    #[test]
    fn what_is_not_confirmed_in_time_is_rolled_back() {
        let mut rig = Rig::new();
        rig.reload("second", Some(Duration::from_millis(1))).unwrap();
        assert_eq!(rig.told(), "second");
        rig.go_on();
        assert_eq!(rig.told(), "first");
        assert!(rig.confirm().unwrap_err().to_string().contains("rolled back"));
    }

    #[test]
    fn a_roll_back_asks_for_nothing_anew() {
        let mut rig = Rig::new();
        rig.reload("second", Some(Duration::from_millis(1))).unwrap();
        // What the rules before name is a port by now, with which no reload would be taken.
        rig.net.gateway.ip("link add br0 type bridge\nlink set lan master br0").unwrap();
        let prepared = rig.runtime.block_on(rig.executor.prepared());
        assert!(matches!(prepared, Underway::TooLate));
        rig.net.gateway.enter(|| rig.executor.roll_back(rig.instance.as_mut().unwrap()));
        assert_eq!(rig.executor.reloads.rolled_back, 1);
        rig.net.gateway.ip("link set lan nomaster").unwrap();
        let instance = rig.instance.as_mut().unwrap();
        rig.net.gateway.enter(|| instance.follow(Changed::EVERYTHING));
        assert_eq!(rig.told(), "first");
    }

    #[test]
    fn what_is_confirmed_stays_and_nothing_comes_in_between() {
        let mut rig = Rig::new();
        rig.reload("second", Some(Duration::from_secs(600))).unwrap();
        let refused = rig.reload("third", None).unwrap_err();
        assert!(refused.to_string().contains("waits to be confirmed"), "{refused}");
        assert_eq!(rig.told(), "second");
        rig.confirm().unwrap();
        rig.runtime.block_on(async {
            let late = tokio::time::timeout(Duration::from_millis(50), rig.executor.prepared());
            assert!(late.await.is_err(), "nothing waits any more");
        });
        rig.reload("third", None).unwrap();
        assert_eq!(rig.told(), "third");
    }

    #[test]
    fn the_main_loop_goes_round_while_a_file_is_read() {
        let mut rig = Rig::new();
        let (reply, mut changes) = oneshot::channel();
        fs::write(&rig.file, answering("second")).unwrap();
        assert_eq!(rig.carry_out(Command::Reload { confirm: None, reply }), Further::GoOn);
        let (reply, looked) = oneshot::channel();
        assert_eq!(rig.carry_out(Command::Look { reply }), Further::GoOn);
        assert_eq!(looked.blocking_recv().unwrap().unwrap().generation, 0);
        assert!(changes.try_recv().is_err(), "nothing was waited for");
        rig.go_on();
        changes.blocking_recv().unwrap().unwrap();
        assert_eq!(rig.told(), "second");
    }

    #[test]
    fn rules_from_flags_cannot_be_read_again_and_a_drain_stops() {
        let mut rig = Rig::new();
        rig.executor = Executor::new(None);
        let refused = rig.reload("second", None).unwrap_err();
        assert!(refused.to_string().contains("--config FILE"), "{refused}");
        assert_eq!(rig.told(), "first");
        let (reply, replied) = oneshot::channel();
        assert_eq!(rig.carry_out(Command::Drain { reply }), Further::Stop);
        let limit = rig.instance.as_ref().unwrap().drain_limit();
        // Whether what was told is still live depends on who was faster.
        assert_eq!(replied.blocking_recv().unwrap().unwrap().limit, limit);
    }
}
