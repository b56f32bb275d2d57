//! What a connection costs in user space while nothing happens on it.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::Context as _;

use super::{Metric, Sample};
use crate::{lane::Lane, memory};

const STEPS: [(usize, Metric); 3] =
    [(1_000, Metric::Idle1000), (5_000, Metric::Idle5000), (9_000, Metric::Idle9000)];

pub(super) fn run(lane: &Lane) -> anyhow::Result<Sample> {
    let pid = lane.proxy.as_ref().context("plain forwarding has no processes")?.pid();
    let before = memory::of(pid)?;
    let mut open = Vec::new();
    let mut values = Vec::new();
    for (number, metric) in STEPS {
        let more =
            lane.net.client.enter(|| (open.len()..number).map(|_| connect()).collect::<io::Result<Vec<_>>>());
        open.extend(more.with_context(|| format!("after {} connections", open.len()))?);
        let grown = memory::of(pid)?.saturating_sub(before);
        values.push((metric, grown as f64 / number as f64));
    }
    Ok(Sample(values))
}

/// A connection that has carried a request and its answer.
fn connect() -> io::Result<TcpStream> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&Lane::target(80), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
    match stream.read(&mut [0; 1024])? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(stream),
    }
}
