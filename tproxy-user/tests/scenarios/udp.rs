//! UDP: what is true of connections, for datagrams.

mod broken;
mod daemons;
mod errors;
mod forwarded;
mod fragments;
mod hosts;
pub(crate) mod limits;
mod nat;
mod order;
mod quic;
mod real;
mod send;
mod transparency;

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    thread,
};

use crate::support::*;

/// Answers each datagram with whom it is from and what it says. It ends with the test process.
#[track_caller]
pub(crate) fn reflect(namespace: &Namespace, address: impl Into<SocketAddr>) {
    let socket = datagrams(namespace, address);
    socket.set_read_timeout(None).expect("SO_RCVTIMEO");
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let said = String::from_utf8_lossy(&buffer[..length]);
            // A peer that is gone is none of its business.
            let _ = socket.send_to(format!("{peer} said {said}").as_bytes(), peer);
        }
    });
}

/// A server that [`reflect`]s on both families' server and public addresses.
#[track_caller]
pub(crate) fn reflecting(world: &World, port: u16) {
    for family in Family::ALL {
        for address in [family.server(), family.public()] {
            reflect(&world.net.server, (address, port));
        }
    }
}

/// Sends `text` and returns the answer, which has to come from where it was sent to.
#[track_caller]
pub(crate) fn ask(socket: &UdpSocket, to: SocketAddr, text: &str, context: &dyn std::fmt::Display) -> String {
    socket.send_to(text.as_bytes(), to).unwrap_or_else(|error| panic!("{to}: {error}\n{context}"));
    let (answer, from) = receive(socket).unwrap_or_else(|error| panic!("{to}: {error}\n{context}"));
    assert_eq!(from, to, "{answer}\n{context}");
    answer
}

fn receive(socket: &UdpSocket) -> std::io::Result<(String, SocketAddr)> {
    let mut buffer = vec![0; 65_536];
    let (length, from) = socket.recv_from(&mut buffer)?;
    Ok((String::from_utf8_lossy(&buffer[..length]).into(), from))
}

/// Asserts that nothing has arrived. To be called when something sent later has.
#[track_caller]
fn assert_nothing(socket: &UdpSocket, context: &dyn std::fmt::Display) {
    socket.set_nonblocking(true).expect("O_NONBLOCK");
    let outcome = receive(socket);
    socket.set_nonblocking(false).expect("O_NONBLOCK");
    assert_eq!(outcome.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock), "{context}");
}
