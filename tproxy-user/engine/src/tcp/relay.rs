//! Both directions of a connection, in one task.

use std::{
    future::{Future as _, poll_fn},
    io,
    pin::pin,
    task::{Context, Poll},
};

use futures_util::future::LocalBoxFuture;
use tokio::{
    io::{Interest, Ready},
    net::TcpStream,
    time::{Instant, sleep_until},
};

use super::{
    End,
    connection::{Connection, Ended, client_failed, pending_error, upstream_failed},
    keepalive::KeepAlive,
    pipe::PipeFailure,
};
/// Reads of one direction before other connections of the worker have their turn.
const CHUNKS_PER_TURN: u32 = 8;

/// Relays until both sides have ended, one of them fails, or nothing moves for too long.
pub(super) async fn relay(client: &TcpStream, upstream: &TcpStream, connection: &mut Connection) -> Ended {
    let (mut client_error, mut upstream_error) = (ErrorWatch::default(), ErrorWatch::default());
    // One timer a connection: moving bytes only notes the time, and the timer looks at it when it fires.
    let limit = connection.idle_timeout();
    let mut last_moved = Instant::now();
    let mut keep_alive = KeepAlive::new(connection.keepalive());
    let due = |keep_alive: &KeepAlive| keep_alive.due().map_or(limit, |due| limit.min(due));
    let mut timer = pin!(sleep_until(last_moved + due(&keep_alive)));

    poll_fn(|cx| {
        let ends = match move_bytes(cx, client, upstream, connection) {
            Ok(ends) => ends,
            Err(ended) => return Poll::Ready(ended),
        };
        // Before an end is passed on: a peer that has ended and then reset has not ended in order.
        if !connection.up.is_reading() && client_error.poll(cx, client).is_ready() {
            return Poll::Ready(client_died(client, upstream, pending_error(client), connection));
        }
        if !connection.down.is_reading() && upstream_error.poll(cx, upstream).is_ready() {
            return Poll::Ready(upstream_died(client, upstream, pending_error(upstream), connection));
        }
        if let Poll::Ready(ended) = pass_on(ends, client, upstream, connection) {
            return Poll::Ready(ended);
        }
        if connection.count() {
            last_moved = Instant::now();
        }
        while timer.as_mut().poll(cx).is_ready() {
            let silence = last_moved.elapsed();
            if silence >= limit {
                return Poll::Ready(End::IdleTimeout.into());
            }
            if silence >= due(&keep_alive) {
                keep_alive.look(client, upstream, last_moved);
            }
            timer.as_mut().reset(last_moved + due(&keep_alive));
        }
        Poll::Pending
    })
    .await
}

/// A reset has to be noticed also on a socket that nobody reads from at the moment, because what was read from it last is
/// stuck, or because its end of data was seen long ago. Few connections are ever in that state, so it costs them no memory
/// before.
#[derive(Default)]
struct ErrorWatch<'a>(Option<LocalBoxFuture<'a, io::Result<Ready>>>);

impl<'a> ErrorWatch<'a> {
    fn poll(&mut self, cx: &mut Context<'_>, stream: &'a TcpStream) -> Poll<()> {
        let ready = self.0.get_or_insert_with(|| Box::pin(stream.ready(Interest::ERROR)));
        ready.as_mut().poll(cx).map(drop)
    }
}

/// One turn of both pipes, `[up, down]`. Says of which there is no more to come.
fn move_bytes(
    cx: &mut Context<'_>,
    client: &TcpStream,
    upstream: &TcpStream,
    connection: &mut Connection,
) -> Result<[Poll<()>; 2], Ended> {
    let Connection { shared, up, down, .. } = connection;
    let up = up.poll(cx, client, upstream, &shared.buffers, CHUNKS_PER_TURN);
    let down = down.poll(cx, upstream, client, &shared.buffers, CHUNKS_PER_TURN);
    match (up, down) {
        (Poll::Ready(Err(PipeFailure::Source(error))), _)
        | (_, Poll::Ready(Err(PipeFailure::Sink(error)))) => {
            Err(client_died(client, upstream, error, connection))
        }
        (Poll::Ready(Err(PipeFailure::Sink(error))), _)
        | (_, Poll::Ready(Err(PipeFailure::Source(error)))) => {
            Err(upstream_died(client, upstream, error, connection))
        }
        (up, down) => Ok([up.map(drop), down.map(drop)]),
    }
}

/// Tells the one side that the other has no more to send; when both have not, closing the sockets says the rest.
fn pass_on(
    ends: [Poll<()>; 2],
    client: &TcpStream,
    upstream: &TcpStream,
    connection: &mut Connection,
) -> Poll<Ended> {
    match ends {
        [Poll::Ready(()), Poll::Ready(())] => return Poll::Ready(End::Eof.into()),
        [Poll::Ready(()), Poll::Pending] => {
            if let Err(error) = connection.up.close(upstream) {
                return Poll::Ready(upstream_died(client, upstream, error, connection));
            }
        }
        [Poll::Pending, Poll::Ready(())] => {
            if let Err(error) = connection.down.close(client) {
                return Poll::Ready(client_died(client, upstream, error, connection));
            }
        }
        [Poll::Pending, Poll::Pending] => {}
    }
    Poll::Pending
}

fn client_died(
    client: &TcpStream,
    upstream: &TcpStream,
    error: io::Error,
    connection: &mut Connection,
) -> Ended {
    connection.up.last_words(client, upstream, &connection.shared.buffers);
    client_failed(&error)
}

fn upstream_died(
    client: &TcpStream,
    upstream: &TcpStream,
    error: io::Error,
    connection: &mut Connection,
) -> Ended {
    connection.down.last_words(upstream, client, &connection.shared.buffers);
    upstream_failed(&error)
}
