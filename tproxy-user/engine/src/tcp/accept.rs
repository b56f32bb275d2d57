//! Taking connections off a listener.

use std::{
    convert::Infallible, fs::File, future::poll_fn, io, rc::Rc, sync::atomic::Ordering::Relaxed, task::Poll,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tproxy_common::abi::Origin;

use super::{
    Decided,
    connection::{Arrived, Connection, place, refuse},
    counters::End,
    service::Shared,
    session,
};
use crate::{
    family::Family,
    flow::{ClientAddr, OriginalDst},
    generation::ChosenRule,
    socket,
};

/// How long accepting pauses for lack of descriptors, unless a connection of ours ends before that.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Accepts for ever. `accept` yields to the runtime when the queue is empty, and after 128 connections.
pub(super) async fn accept_from(listener: TcpListener, shared: Rc<Shared>) -> Infallible {
    let mut reserve = Reserve::new();
    let mut exhausted = false;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if exhausted {
                    tracing::info!("accepting again");
                    exhausted = false;
                }
                decide(stream, ClientAddr(peer), &shared);
            }
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => {
                shared.counters.out_of_descriptors.fetch_add(1, Relaxed);
                if !exhausted {
                    tracing::warn!(%error, "cannot accept; resetting some clients until it gets better");
                    exhausted = true;
                }
                reserve.turn_one_away(&listener).await;
                // Both outcomes mean: try again.
                let _ = timeout(BACK_OFF, shared.live.ended()).await;
            }
        }
    }
}

/// Finds out what is to be done with a connection, and begins it.
fn decide(stream: TcpStream, client: ClientAddr, shared: &Rc<Shared>) {
    // It fails only for sockets that are not connected.
    let Ok(local) = stream.local_addr() else {
        shared.counters.accepted.fetch_add(1, Relaxed);
        return shared.counters.ended(End::Undecided);
    };
    let dst = OriginalDst(local);
    if let Some(prepared) = shared.holding.borrow_mut().take(client, dst) {
        // For how long it has waited, and lest it be taken for the next one of the same addresses and ports.
        shared.decisions.borrow_mut().take(client, dst);
        return prepared.begin(stream);
    }
    shared.counters.accepted.fetch_add(1, Relaxed);
    if shared.bound.contains(&local) {
        return refuse(shared, client, dst, End::Loop);
    }
    let Some((rule, origin)) = rule_of(&stream, client, dst, shared) else {
        return refuse(shared, client, dst, End::Undecided);
    };
    let Some(place) = place(shared, &rule, client, dst) else {
        return refuse(shared, client, dst, End::OverLimit);
    };
    let class = socket::class_of_syn(&stream);
    // It fails for no socket of ours.
    let _ = socket::set_class(&stream, Family::of(client.0.ip()), class);
    let connection = Connection::new(Rc::clone(shared), client, dst, rule, Arrived { class, origin }, place);
    let flow = connection.live.share();
    flow.served_by(tokio::task::spawn_local(session::run(stream, connection)).abort_handle());
}

/// The rule that selected a connection, and how it came: as the datapath has it, or, where that has forgotten, as it would
/// decide now.
fn rule_of(
    stream: &TcpStream,
    client: ClientAddr,
    dst: OriginalDst,
    shared: &Shared,
) -> Option<(ChosenRule, Origin)> {
    let chosen = |decided: Decided| Some((shared.generations.rule(decided.rule)?, decided.origin));
    let remembered = shared.decisions.borrow_mut().take(client, dst);
    remembered.and_then(chosen).or_else(|| {
        let again =
            shared.generations.decider().connection(stream, client, dst, shared.mark).and_then(chosen)?;
        shared.counters.decided_again.fetch_add(1, Relaxed);
        Some(again)
    })
}

/// Errors that were already pending on the connection; accept(2) says to treat them like `EAGAIN`.
/// Whatever else fails would fail again at once.
fn concerns_one_connection(error: &io::Error) -> bool {
    use rustix::io::Errno;
    const PENDING: [Errno; 10] = [
        Errno::CONNABORTED,
        Errno::INTR,
        Errno::NETDOWN,
        Errno::PROTO,
        Errno::NOPROTOOPT,
        Errno::HOSTDOWN,
        Errno::NONET,
        Errno::HOSTUNREACH,
        Errno::OPNOTSUPP,
        Errno::NETUNREACH,
    ];
    Errno::from_io_error(error).is_some_and(|errno| PENDING.contains(&errno))
}

/// A descriptor held for the time when there are no more: with it the client that has waited longest
/// is at least told that it waits in vain, and the listener does not stay readable for nothing.
struct Reserve(Option<File>);

impl Reserve {
    fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    async fn turn_one_away(&mut self, listener: &TcpListener) {
        self.0 = None;
        let turned_away = poll_fn(|cx| Poll::Ready(listener.poll_accept(cx))).await;
        // Which resets it, and gives its descriptor back.
        drop(turned_away);
        *self = Self::new();
    }
}
