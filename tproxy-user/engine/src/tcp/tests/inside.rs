//! A connection without a worker around it, to look at from inside.

use std::{io::Write, rc::Rc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

use super::rig::*;
use crate::{
    config::{Action, Source},
    family::Family,
    flow::{ClientAddr, OriginalDst},
    flows::Flows,
    generation::RuleNumber,
    live::LiveCount,
    mark::Mark,
    socket,
    tcp::{
        Affinity, Setup, TcpCounters,
        connection::{Arrived, Connection},
        service::Shared,
        session,
    },
};

/// A client, and the server that it is connected to by a task of this thread.
async fn connected() -> (TcpStream, TcpStream, Rc<Shared>) {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = socket::listener(Family::V4, Mark::DEFAULT).expect("root");
    let front = TcpListener::from_std(front.into()).unwrap();
    let client = TcpStream::connect(front.local_addr().unwrap()).await.unwrap();
    let (accepted, peer) = front.accept().await.unwrap();
    let generations = generations(rule(Action::Direct, Source::Host), TIMEOUTS);
    let shared = Shared::new(
        Setup {
            listeners: vec![],
            bound: [].into(),
            generations,
            mark: Mark::DEFAULT,
            routing: crate::way::Routing::default(),
            decisions: Box::new(Always(None)),
            counters: TcpCounters::default().into(),
            syns: None,
            flows: Flows::of_workers(1).table(0),
        },
        LiveCount::default(),
        Affinity::default(),
    );
    let dst = OriginalDst(server.local_addr().unwrap());
    let rule = shared.generations.rule(RuleNumber(0)).unwrap();
    let place = rule.place(ClientAddr(peer)).unwrap();
    let connection =
        Connection::new(Rc::clone(&shared), ClientAddr(peer), dst, rule, Arrived::default(), place);
    let session = session::run(accepted, connection);
    assert!(size_of_val(&session) <= 864, "{} bytes a connection", size_of_val(&session));
    tokio::task::spawn_local(session);
    let (upstream, _) = server.accept().await.unwrap();
    (client, upstream, shared)
}

#[test]
fn an_idle_connection_is_small_and_holds_no_buffer() {
    wait(LocalSet::new().run_until(async {
        let (mut client, mut upstream, shared) = connected().await;
        for _ in 0..3 {
            client.write_all(b"ping").await.unwrap();
            upstream.read_exact(&mut [0; 4]).await.unwrap();
            upstream.write_all(b"pong").await.unwrap();
            client.read_exact(&mut [0; 4]).await.unwrap();
            assert_eq!(shared.buffers.free(), 1, "one buffer was made, and it lies unused");
        }
    }));
}

#[test]
fn an_answer_that_arrives_together_with_a_reset_is_passed_on() {
    wait(LocalSet::new().run_until(async {
        let (mut client, upstream, _) = connected().await;
        client.write_all(b"a request that nobody reads").await.unwrap();
        upstream.readable().await.unwrap();
        // The relay does not run meanwhile, so it sees both at once.
        let mut upstream = upstream.into_std().unwrap();
        upstream.write_all(&[7; 20_000]).unwrap();
        // Closing with unread data is a reset.
        drop(upstream);
        let mut answer = Vec::new();
        assert!(client.read_to_end(&mut answer).await.is_err());
        assert_eq!(answer.len(), 20_000);
    }));
}
