//! What the rule's action makes of a connection.

use std::sync::Arc;

use tokio::net::TcpStream;

use super::{
    End,
    connection::{Connection, Ended},
    relay, respond,
    upstream::{self, NoUpstream, Upstream},
};
use crate::{config::Action, flows::FlowState, intercept::Taker, socket};

/// Serves one connection from accept to close. Unless it ends in order, dropping the sockets resets
/// whoever is at their other ends.
#[expect(clippy::manual_async_fn, reason = "an async fn holds its arguments twice, for each connection")]
pub(super) fn run(client: TcpStream, mut connection: Connection) -> impl Future<Output = ()> {
    async move {
        if let Action::HandOver(taker) = &connection.rule().treatment.action {
            let taker = taker.clone();
            let ended = Box::pin(hand_over(client, &mut connection, &taker)).await;
            return connection.ended(ended);
        }
        let ended = serve(&client, &mut connection).await;
        if ended.end == End::Eof {
            socket::close_in_order(&client);
        }
        connection.ended(ended);
    }
}

/// For somebody else's code, which sees a socket like any other: closing it is an orderly end.
async fn hand_over(client: TcpStream, connection: &mut Connection, taker: &Taker) -> Ended {
    connection.announce(None, None);
    socket::close_in_order(&client);
    let rule = Arc::clone(&connection.rule().name);
    match taker.hand_over(client, connection.client(), connection.dst(), rule).await {
        Ok(()) => End::Eof.into(),
        Err(error) => Ended { end: End::Stopped, error: Some(error.to_string()), kind: None },
    }
}

/// What ends soon is in a box of its own: it needs more room than the relay, which lasts.
async fn serve(client: &TcpStream, connection: &mut Connection) -> Ended {
    match &connection.rule().treatment.action {
        Action::Direct | Action::Upstream(_) => {}
        Action::Respond(text) => {
            let text = Arc::clone(text);
            connection.announce(None, None);
            connection.live.set_state(FlowState::Answering);
            return Box::pin(respond::respond(client, &text, connection)).await;
        }
        // The datapath does these without us.
        Action::HandOver(_) | Action::Reject | Action::Drop | Action::Pass => return End::Undecided.into(),
    }
    let upstream = match Box::pin(upstream::prepare(Some(client), connection)).await {
        Ok(upstream) => upstream.announced(connection),
        Err(NoUpstream { ended, address }) => {
            connection.announce(address, None);
            return ended;
        }
    };
    relay(client, &upstream, connection).await
}

/// Serves a connection whose upstream was connected before it was accepted.
#[expect(clippy::manual_async_fn, reason = "as above")]
pub(super) fn resume(
    client: TcpStream,
    upstream: Upstream,
    mut connection: Connection,
) -> impl Future<Output = ()> {
    async move {
        let upstream = upstream.announced(&mut connection);
        let ended = relay(&client, &upstream, &mut connection).await;
        if ended.end == End::Eof {
            socket::close_in_order(&client);
        }
        connection.ended(ended);
    }
}

async fn relay(client: &TcpStream, upstream: &TcpStream, connection: &mut Connection) -> Ended {
    connection.live.set_state(FlowState::Relaying);
    let ended = relay::relay(client, upstream, connection).await;
    if ended.end == End::Eof {
        socket::close_in_order(upstream);
    }
    ended
}
