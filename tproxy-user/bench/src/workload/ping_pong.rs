//! One byte there and back, as often as it goes. Client, server and proxy share one CPU: spread over several, the
//! figures are those of the scheduler's mood.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{Done, Metric, Sample};
use crate::{
    affinity::{Pinned, pin_this_thread},
    cpu::CpuTime,
    lane::Lane,
    pace::Pace,
    stats::percentile,
    steering::ECHO,
};

const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn run(lane: &Lane, pace: Pace) -> anyhow::Result<Sample> {
    let _pinned = lane.proxy.as_ref().map(|proxy| Pinned::process(proxy.pid())).transpose()?;
    let listener = lane.net.server.enter(|| TcpListener::bind(("0.0.0.0", ECHO)))?;
    let stream = lane.net.client.enter(|| TcpStream::connect_timeout(&Lane::target(ECHO), PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let (before, start) = (CpuTime::now()?, Instant::now());
    let mut times = thread::scope(|scope| {
        let server = scope.spawn(|| echo(&listener));
        let client = scope.spawn(|| play(&stream, pace));
        let times = client.join().unwrap_or_else(|reason| std::panic::resume_unwind(reason));
        stream.shutdown(Shutdown::Both)?;
        server.join().unwrap_or_else(|reason| std::panic::resume_unwind(reason))?;
        times
    })
    .context("ping-pong")?;
    // The warm-up is part of both.
    let done = Done { units: times.len() as f64, span: start.elapsed(), cpu: CpuTime::now()? - before };
    let Sample(mut values) = done.sample();
    // The reciprocal of what the percentiles say better.
    values.retain(|(metric, _)| *metric != Metric::Rate);
    times.drain(..times.len() / 10);
    times.sort_unstable();
    for (metric, part) in [(Metric::P50, 0.5), (Metric::P99, 0.99), (Metric::P999, 0.999)] {
        values.push((metric, f64::from(percentile(&times, part).context("no round trip")?) * 1e-9));
    }
    Ok(Sample(values))
}

fn echo(listener: &TcpListener) -> io::Result<()> {
    pin_this_thread()?;
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// Nanoseconds of each round trip.
fn play(mut stream: &TcpStream, pace: Pace) -> io::Result<Vec<u32>> {
    pin_this_thread()?;
    let mut times = Vec::with_capacity(200_000);
    let mut byte = [0];
    let start = Instant::now();
    let mut begun = start;
    while begun - start < pace.span {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        let ended = Instant::now();
        times.push(u32::try_from((ended - begun).as_nanos()).unwrap_or(u32::MAX));
        begun = ended;
    }
    Ok(times)
}
