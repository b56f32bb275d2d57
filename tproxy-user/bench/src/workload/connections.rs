//! New connections per second. wrk and ab keep or count connections in ways that do not fit, so the load is our own:
//! connect, send a request that asks for the end of the connection, read to that end, close.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Builder,
    time::timeout,
};

use super::{Done, Sample};
use crate::{
    cpu::CpuTime,
    lane::{self, Lane},
    pace::Pace,
};

/// Connections under way at any time, all threads together.
const AT_ONCE: usize = 64;
/// One that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn run(lane: &Lane, pace: Pace) -> anyhow::Result<Sample> {
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let threads = lane::cpus();
    thread::scope(|scope| {
        let load = || lane.net.client.enter(|| generate(AT_ONCE / threads, &done, &stop));
        let generators: Vec<_> = (0..threads).map(|_| scope.spawn(load)).collect();
        // Measuring is letting time pass.
        thread::sleep(pace.warm_up);
        let begin = (Instant::now(), CpuTime::now()?, done.load(Relaxed));
        thread::sleep(pace.span);
        let units = done.load(Relaxed) - begin.2;
        let result = Done { units: units as f64, span: begin.0.elapsed(), cpu: CpuTime::now()? - begin.1 };
        stop.store(true, Relaxed);
        for generator in generators {
            generator
                .join()
                .unwrap_or_else(|reason| std::panic::resume_unwind(reason))
                .context("a connection")?;
        }
        Ok(result.sample())
    })
}

/// Makes connections until it is told to stop, or one fails.
fn generate(at_once: usize, done: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let connect = || async {
            while !stop.load(Relaxed) {
                timeout(PATIENCE, exchange()).await??;
                done.fetch_add(1, Relaxed);
            }
            io::Result::Ok(())
        };
        let all = (0..at_once).map(|_| connect());
        futures_util::future::try_join_all(all).await.map(drop)
    })
}

async fn exchange() -> io::Result<()> {
    let mut stream = TcpStream::connect(Lane::target(80)).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").await?;
    let mut answer = [0; 1024];
    let mut length = 0;
    loop {
        match stream.read(&mut answer).await? {
            0 if length > 0 => return Ok(()),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => length += more,
        }
    }
}
