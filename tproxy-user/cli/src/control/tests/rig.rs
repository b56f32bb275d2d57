use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tproxy::{datapath::MapUse, flows::Flows, instance::Changes};

use crate::{
    control::{Server, Shown},
    example,
    run::{Command, Draining, Refused, Reloads},
};

/// No test waits longer than this for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A server on a thread of its own.
pub(super) struct Rig {
    path: PathBuf,
    pub(super) flows: Flows,
    pub(super) ending: CancellationToken,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

impl Rig {
    pub(super) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let path = std::env::temp_dir().join(format!("tproxy-control-{}-{number}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let flows = Flows::of_workers(1);
        let (ending, stop) = (CancellationToken::new(), CancellationToken::new());
        let thread = thread::spawn({
            let (flows, ending, stop) = (flows.clone(), ending.clone(), stop.clone());
            move || serve(listener, flows, ending, &stop)
        });
        Self { path, flows, ending, stop, thread: Some(thread) }
    }

    pub(super) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// All that is answered to some bytes. That not all of them are wanted is no mistake.
    pub(super) fn talk(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes);
        read(&mut stream)
    }

    /// The same when nothing more can come, so that nobody waits for it.
    pub(super) fn talk_and_hang_up(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        read(&mut stream)
    }

    pub(super) fn ask(&self, method: &str, path: &str) -> String {
        self.talk(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())
    }

    /// The JSON of an answer with this status.
    #[track_caller]
    pub(super) fn json(&self, method: &str, path: &str, status: u16) -> serde_json::Value {
        let answer = self.ask(method, path);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path}: {answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{method} {path}: {error}: {body}"))
    }
}

/// What is read until the end; a reset is one.
pub(super) fn read(stream: &mut UnixStream) -> String {
    let started = Instant::now();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(started.elapsed() < PATIENCE, "no end: {}", String::from_utf8_lossy(&answer));
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::main(flavor = "current_thread")]
async fn serve(listener: UnixListener, flows: Flows, ending: CancellationToken, stop: &CancellationToken) {
    let (commands, mut received) = mpsc::channel(16);
    let shown = Shown {
        name: "test".parse().unwrap(),
        started: Instant::now(),
        metrics: None,
        commands,
        flows,
        ending,
        scraped: tokio::sync::Mutex::default(),
        counted: tokio::sync::Mutex::default(),
    };
    let _server = Server::at_socket(listener, Arc::new(shown)).unwrap();
    loop {
        let command = tokio::select! {
            () = stop.cancelled() => return,
            Some(command) = received.recv() => command,
        };
        match command {
            Command::Look { reply } => drop(reply.send(Ok(Box::new(example::look())))),
            Command::Reloads { reply } => drop(reply.send(Ok(Reloads::default()))),
            Command::Maps { reply } => {
                let maps = vec![MapUse { name: "DECISIONS", entries: 1, capacity: 2 }];
                drop(reply.send(Ok(maps.into())));
            }
            Command::Drain { reply } => {
                drop(reply.send(Ok(Draining { live: 3, limit: Duration::from_secs(30) })));
            }
            Command::Reload { reply, .. } | Command::Check { reply, .. } => {
                drop(reply.send(Ok(Changes::default())))
            }
            Command::Confirm { reply } => drop(reply.send(Err(Refused(vec!["one".into(), "two".into()])))),
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the server panicked");
        }
        std::fs::remove_file(&self.path).unwrap();
    }
}
