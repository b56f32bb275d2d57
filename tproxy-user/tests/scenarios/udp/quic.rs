//! QUIC, whose connections outlive the client's port.

use std::{sync::Arc, thread};

use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use rustls::{
    RootCertStore,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::runtime::{Builder, Runtime};

use super::*;

/// Bytes that go through the proxy.
const AMOUNT: usize = 100_000_000;
const CHUNK: usize = 1_000_000;

/// What the server saw of a connection.
#[derive(Debug)]
struct Served {
    bytes: usize,
    first: SocketAddr,
    last: SocketAddr,
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn endpoint(socket: UdpSocket, config: Option<ServerConfig>) -> Endpoint {
    Endpoint::new(EndpointConfig::default(), config, socket, Arc::new(TokioRuntime)).unwrap()
}

fn configurations() -> (ServerConfig, ClientConfig) {
    let signed = rcgen::generate_simple_self_signed(["server.example".to_owned()]).unwrap();
    let certificate = signed.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der()));
    let server = ServerConfig::with_single_cert(vec![certificate.clone()], key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    (server, ClientConfig::with_root_certificates(Arc::new(roots)).unwrap())
}

/// Takes one connection, reads one stream of it to its end, and says how much that was.
async fn serve_one(endpoint: Endpoint) -> Served {
    let connection = endpoint.accept().await.unwrap().await.unwrap();
    let first = connection.remote_address();
    let (mut send, mut receive) = connection.accept_bi().await.unwrap();
    let mut bytes = 0;
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await.unwrap() {
        bytes += chunk.bytes.len();
    }
    send.write_all(&(bytes as u64).to_be_bytes()).await.unwrap();
    send.finish().unwrap();
    let last = connection.remote_address();
    connection.closed().await;
    Served { bytes, first, last }
}

/// Sends all, from another port after the first half.
async fn upload(connection: &Connection, rebind: impl FnOnce()) -> u64 {
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let chunk = vec![b'q'; CHUNK];
    let mut rebind = Some(rebind);
    for sent in (0..AMOUNT).step_by(CHUNK) {
        if sent >= AMOUNT / 2
            && let Some(rebind) = rebind.take()
        {
            rebind();
        }
        send.write_all(&chunk).await.unwrap();
    }
    send.finish().unwrap();
    let mut count = [0; 8];
    receive.read_exact(&mut count).await.unwrap();
    u64::from_be_bytes(count)
}

#[test]
fn a_hundred_megabytes_arrive_though_the_clients_port_changes() {
    let world = World::new();
    for (source, family) in ["host", "client-port"].iter().flat_map(|s| Family::ALL.map(|family| (s, family)))
    {
        let mut tproxy = world.tproxy(&format!("{FORWARDED} --action direct --source {source}"));
        let (server_config, client_config) = configurations();
        let socket = datagrams(&world.net.server, (family.server(), 443));
        let server = thread::spawn(move || {
            runtime().block_on(async { serve_one(endpoint(socket, Some(server_config))).await })
        });
        let sockets = [5_001, 5_002].map(|port| datagrams(&world.net.client, (family.client(), port)));
        let [before, after] = [0, 1].map(|index: usize| sockets[index].local_addr().unwrap());
        let [socket, other] = sockets;
        let confirmed = runtime().block_on(async {
            let client = endpoint(socket, None);
            let to = SocketAddr::new(family.server(), 443);
            let connecting = client.connect_with(client_config, to, "server.example").unwrap();
            let connection =
                connecting.await.unwrap_or_else(|error| panic!("{source}: {error}\n{}", *tproxy));
            let confirmed = upload(&connection, || client.rebind(other).unwrap()).await;
            connection.close(0_u8.into(), b"done");
            client.wait_idle().await;
            confirmed
        });
        let served = server.join().unwrap();
        assert_eq!((confirmed, served.bytes), (AMOUNT as u64, AMOUNT), "{source} {family:?}\n{}", *tproxy);
        assert_ne!(served.first, served.last, "it has migrated");
        match *source {
            "host" => assert_eq!([served.first.ip(), served.last.ip()], [family.wan(); 2], "{served:?}"),
            _ => assert_eq!([served.first, served.last], [before, after], "{served:?}"),
        }
        assert_eq!(counted_at_the_end(&mut tproxy, "sessions"), 2, "{}", *tproxy);
    }
}
