//! What goes in comes out.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    thread,
};

use proptest::prelude::*;
use socket2::SockRef;

use super::rig::*;
use crate::tcp::End;

/// The byte at a place of a stream; no two places less than 251 apart have the same.
fn byte_at(place: usize) -> u8 {
    (place % 251) as u8
}

fn send(mut stream: &TcpStream, total: usize, chunks: &[usize]) {
    let mut sent = 0;
    for chunk in chunks.iter().cycle() {
        let chunk: Vec<u8> = (sent..total.min(sent + chunk)).map(byte_at).collect();
        if chunk.is_empty() {
            break;
        }
        stream.write_all(&chunk).unwrap();
        sent += chunk.len();
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

fn receive(mut stream: &TcpStream, total: usize, chunks: &[usize]) {
    let mut received = 0;
    for chunk in chunks.iter().cycle() {
        let mut buffer = vec![0; *chunk];
        let length = stream.read(&mut buffer).unwrap();
        if length == 0 {
            break;
        }
        let expected: Vec<u8> = (received..received + length).map(byte_at).collect();
        assert_eq!(buffer[..length], expected, "at {received}");
        received += length;
    }
    assert_eq!(received, total);
}

fn chunks() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1..16usize, 1..3000usize, 1..200_000usize], 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Small buffers at the ends make the relay's writes short.
    #[test]
    fn every_byte_arrives_at_its_place(
        sizes in (0..600_000usize, 0..600_000usize),
        writes in (chunks(), chunks()),
        reads in (chunks(), chunks()),
        small_buffers in any::<bool>(),
    ) {
        let (rig, server) = upstream();
        if small_buffers {
            SockRef::from(&server).set_recv_buffer_size(32 * 1024).unwrap();
            SockRef::from(&server).set_send_buffer_size(8 * 1024).unwrap();
        }
        let (client, upstream) = rig.pair(&server);
        thread::scope(|scope| {
            scope.spawn(|| send(&client, sizes.0, &writes.0));
            scope.spawn(|| receive(&upstream, sizes.0, &reads.0));
            scope.spawn(|| send(&upstream, sizes.1, &writes.1));
            scope.spawn(|| receive(&client, sizes.1, &reads.1));
        });
        let snapshot = rig.assert_end(End::Eof);
        prop_assert_eq!((snapshot.bytes_up, snapshot.bytes_down), (sizes.0 as u64, sizes.1 as u64));
    }
}

#[test]
fn a_reader_that_comes_late_gets_everything() {
    const TOTAL: usize = 24 << 20;
    let (rig, server) = upstream();
    let (client, upstream) = rig.pair(&server);
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(&client, TOTAL, &[1 << 20]));
        // More than the buffers on the way hold, so that the relay has to stop reading.
        upstream.peek(&mut [0]).unwrap();
        assert!(!sender.is_finished());
        receive(&upstream, TOTAL, &[100_000]);
    });
    drop((client, upstream));
    rig.assert_end(End::Eof);
}

#[test]
fn the_client_may_end_first() {
    let (rig, server) = upstream();
    let (client, upstream) = rig.pair(&server);
    send(&client, 1000, &[1000]);
    receive(&upstream, 1000, &[1000]);
    // The server has seen the end; the other direction goes on.
    send(&upstream, 1000, &[10]);
    receive(&client, 1000, &[1000]);
    rig.assert_end(End::Eof);
}

#[test]
fn the_server_may_end_first() {
    let (rig, server) = upstream();
    let (client, upstream) = rig.pair(&server);
    send(&upstream, 1000, &[1000]);
    receive(&client, 1000, &[1000]);
    send(&client, 1000, &[10]);
    receive(&upstream, 1000, &[1000]);
    rig.assert_end(End::Eof);
}

/// splice(2) stops at an urgent byte, and takes it for the end of the data when that was announced.
#[test]
fn urgent_bytes_stay_in_their_place_among_many() {
    use rustix::net::SendFlags;
    const PART: usize = 3_000_000;
    let (rig, server) = upstream();
    let (client, upstream) = rig.pair(&server);
    thread::scope(|scope| {
        scope.spawn(|| {
            for place in [PART, 2 * PART, 3 * PART] {
                let bytes: Vec<u8> = (place - PART..place).map(byte_at).collect();
                (&client).write_all(&bytes[..PART - 1]).unwrap();
                rustix::net::send(&client, &bytes[PART - 1..], SendFlags::OOB).unwrap();
            }
            client.shutdown(Shutdown::Write).unwrap();
        });
        receive(&upstream, 3 * PART, &[1 << 20]);
    });
    drop((client, upstream));
    rig.assert_end(End::Eof);
}

#[test]
fn urgent_bytes_stay_in_their_place() {
    use rustix::net::SendFlags;
    let (rig, server) = upstream();
    let (mut client, mut upstream) = rig.pair(&server);
    client.write_all(b"abc").unwrap();
    rustix::net::send(&client, b"d", SendFlags::OOB).unwrap();
    client.write_all(b"efg").unwrap();
    let mut received = [0; 7];
    upstream.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"abcdefg");
    drop((client, upstream));
    rig.finish();
}
