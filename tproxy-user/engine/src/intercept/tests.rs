use std::{io, sync::Arc};

use tokio::sync::mpsc;

use super::*;
use crate::flow::{ClientAddr, OriginalDst};

fn ends() -> (ClientAddr, OriginalDst) {
    (ClientAddr(([10, 0, 0, 1], 1).into()), OriginalDst(([8, 8, 8, 8], 53).into()))
}

fn wait<T>(event: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(event)
}

#[test]
fn what_a_worker_gives_is_received_and_what_is_sent_is_said_to_it() {
    let (taker, mut sessions) = sessions();
    let (worker, mut said) = mpsc::channel(9);
    let ticket = Ticket { place: 1, number: 2 };
    let handed = taker.place().unwrap().hand_over(ends(), Arc::from("mine"), ticket, worker);
    handed.give(b"first").unwrap();
    handed.give(b"").unwrap();
    wait(async {
        let mut session = sessions.next().await.unwrap();
        assert_eq!((session.client, session.destination, &*session.rule), (ends().0, ends().1, "mine"));
        assert_eq!(session.recv().await.as_deref(), Some(&b"first"[..]));
        assert_eq!(session.recv().await.as_deref(), Some(&b""[..]));
        session.send(b"back").await.unwrap();
        let too_long = session.send(&[0; 65_508]).await.unwrap_err();
        assert_eq!(too_long.kind(), io::ErrorKind::InvalidInput);
        handed.give(b"last").unwrap();
        drop(handed);
        assert_eq!(session.recv().await.as_deref(), Some(&b"last"[..]));
        assert_eq!(session.recv().await, None);
        assert_eq!(session.send(b"late").await.unwrap_err().kind(), io::ErrorKind::NotConnected);
    });
    let words: Vec<_> = std::iter::from_fn(|| said.try_recv().ok()).collect();
    assert!(words.iter().all(|said| said.ticket == ticket));
    assert!(
        matches!(&words[..], [Said { word: Word::Send(back), .. }, Said { word: Word::End, .. }] if **back == *b"back")
    );
}

#[test]
fn who_is_slow_loses_datagrams_and_who_is_gone_gets_none() {
    let (taker, mut sessions) = sessions();
    let (worker, _said) = mpsc::channel(9);
    let ticket = Ticket { place: 1, number: 2 };
    let handed = taker.place().unwrap().hand_over(ends(), Arc::from("mine"), ticket, worker);
    let session = wait(sessions.next()).unwrap();
    let lost = (0..1000).map(|_| handed.give(b"x")).find_map(Result::err).unwrap();
    assert_eq!(lost.kind(), io::ErrorKind::WouldBlock);
    drop(session);
    assert_eq!(handed.give(b"x").unwrap_err().kind(), io::ErrorKind::NotConnected);
    let places: Vec<_> = std::iter::from_fn(|| taker.place().ok()).take(5000).collect();
    assert!(places.len() < 5000, "there is an end");
    drop((places, sessions));
    assert_eq!(taker.place().err().unwrap().kind(), io::ErrorKind::NotConnected);
}

#[test]
fn a_taker_takes_what_it_was_made_for() {
    let (tcp, _connections) = connections();
    let (udp, _sessions) = sessions();
    assert!(tcp.place().is_err() && udp.place().is_ok());
    let both = tcp.clone().and(udp.clone());
    assert!(both.place().is_ok());
    assert_eq!(both, udp.clone().and(tcp.clone()));
    assert!(both != tcp && both != udp && tcp != udp);
}
