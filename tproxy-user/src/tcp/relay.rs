//! Both directions of a connection, in one task.

use std::{
    future::{Future, poll_fn},
    io,
    pin::pin,
    task::{Context, Poll},
};

use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep_until},
};

use super::{
    End,
    connection::{Connection, Ended, client_failed, pending_error, upstream_failed},
    pipe::Failure,
};

/// Reads of one direction before other connections of the worker have their turn.
const CHUNKS_PER_TURN: u32 = 8;

/// Relays until both sides have ended, one of them fails, or nothing moves for too long.
pub(super) async fn relay(client: &TcpStream, upstream: &TcpStream, connection: &mut Connection) -> Ended {
    // A reset has to be noticed also on a socket that we do not read from at the moment, because what
    // was read from it last is stuck, or because its end of data was seen long ago.
    let mut client_error = pin!(client.ready(Interest::ERROR));
    let mut upstream_error = pin!(upstream.ready(Interest::ERROR));
    // One timer a connection: moving bytes only notes the time, and the timer looks at it when it fires.
    let limit = connection.idle_timeout();
    let mut last_moved = Instant::now();
    let mut timer = pin!(sleep_until(last_moved + limit));

    poll_fn(|cx| {
        if client_error.as_mut().poll(cx).is_ready() {
            return Poll::Ready(client_died(client, upstream, pending_error(client), connection));
        }
        if upstream_error.as_mut().poll(cx).is_ready() {
            return Poll::Ready(upstream_died(client, upstream, pending_error(upstream), connection));
        }
        if let Poll::Ready(ended) = move_bytes(cx, client, upstream, connection) {
            return Poll::Ready(ended);
        }
        if connection.count() {
            last_moved = Instant::now();
        }
        while timer.as_mut().poll(cx).is_ready() {
            if last_moved.elapsed() >= limit {
                return Poll::Ready(End::IdleTimeout.into());
            }
            timer.as_mut().reset(last_moved + limit);
        }
        Poll::Pending
    })
    .await
}

/// One turn of both pipes.
fn move_bytes(
    cx: &mut Context<'_>,
    client: &TcpStream,
    upstream: &TcpStream,
    connection: &mut Connection,
) -> Poll<Ended> {
    let Connection { shared, up, down, .. } = connection;
    let up = up.poll(cx, client, upstream, &shared.buffers, CHUNKS_PER_TURN);
    let down = down.poll(cx, upstream, client, &shared.buffers, CHUNKS_PER_TURN);
    match (up, down) {
        (Poll::Ready(Err(Failure::Source(error))), _) | (_, Poll::Ready(Err(Failure::Sink(error)))) => {
            Poll::Ready(client_died(client, upstream, error, connection))
        }
        (Poll::Ready(Err(Failure::Sink(error))), _) | (_, Poll::Ready(Err(Failure::Source(error)))) => {
            Poll::Ready(upstream_died(client, upstream, error, connection))
        }
        (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(End::Eof.into()),
        _ => Poll::Pending,
    }
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
