//! What the rule's action makes of a connection.

use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::{
    End,
    connection::{Connection, Ended},
    relay, respond, upstream,
};
use crate::{config::Action, socket};

/// Serves one connection from accept to close. Unless it ends in order, dropping the sockets resets
/// whoever is at their other ends.
pub(super) async fn run(client: TcpStream, mut connection: Connection) {
    let ended = match connection.rule().action.clone() {
        Action::Direct => intercept(client, connection.dst.0, &mut connection).await,
        Action::Upstream(address) => intercept(client, address, &mut connection).await,
        Action::Respond(text) => answer(client, &text, &mut connection).await,
        // The datapath does these without us.
        Action::Reject | Action::Drop | Action::Pass => End::Undecided.into(),
    };
    connection.ended(ended);
}

async fn intercept(client: TcpStream, address: SocketAddr, connection: &mut Connection) -> Ended {
    let connected = upstream::connect(address, &client, connection).await;
    connection.announce(Some(address), connected.as_ref().ok());
    let upstream = match connected {
        Ok(upstream) => upstream,
        Err(ended) => return ended,
    };
    let ended = relay::relay(&client, &upstream, connection).await;
    if ended.end == End::Eof {
        socket::orderly(client);
        socket::orderly(upstream);
    }
    ended
}

async fn answer(client: TcpStream, text: &str, connection: &mut Connection) -> Ended {
    connection.announce(None, None);
    let ended = respond::respond(&client, text, connection).await;
    if ended.end == End::Eof {
        socket::orderly(client);
    }
    ended
}
