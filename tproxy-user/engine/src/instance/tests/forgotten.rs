//! The datapath forgets what it decided, while a handshake is under way.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use tproxy_netns::{Family, Namespace, PATIENCE};

use super::*;
use crate::tcp::End;

const PORT: u16 = 7000;

/// Rules of each scope, and others that come first and are about other interfaces and users.
fn rules() -> Vec<Rule> {
    let at = |reach: Reach| Selector { ports: vec![PORT..=PORT].into(), ..reach.into() };
    let by = |interface: &str| at(Reach { interfaces: vec![interface.into()], ..Scope::Forwarded.into() });
    let of_user = Selector { uids: vec![12_345], ..at(Scope::Outbound.into()) };
    [
        ("another interface's", by("wan")),
        ("forwarded", by("lan")),
        ("another user's", of_user),
        ("outbound", at(Scope::Outbound.into())),
        ("inbound", at(Scope::Inbound.into())),
    ]
    .map(|(name, selector)| Rule::new(name, selector, Action::Respond(name.into())))
    .into()
}

/// Keeps the end of its handshakes from leaving a namespace.
struct HeldBack<'a>(&'a Namespace);

impl<'a> HeldBack<'a> {
    fn new(namespace: &'a Namespace) -> Self {
        let rule = format!("tcp dport {PORT} tcp flags & (syn|ack) == ack drop");
        let chain = format!("chain out {{ type filter hook output priority 0; {rule}; }}");
        namespace.feed("nft -f -", &format!("table inet held {{ {chain}; }}")).unwrap();
        Self(namespace)
    }
}

impl Drop for HeldBack<'_> {
    fn drop(&mut self) {
        self.0.run("nft delete table inet held").unwrap();
    }
}

/// A client whose handshake has not come to its end yet, and which has something to say.
fn begun(client: &Namespace, to: SocketAddr) -> (TcpStream, HeldBack<'_>) {
    let held_back = HeldBack::new(client);
    let mut stream = client.enter(|| TcpStream::connect(to)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"hello\n").unwrap();
    (stream, held_back)
}

/// With a socket that remembers the handshake, and without.
const SYN_COOKIES: [&str; 2] = ["1", "2"];

#[test]
fn a_connection_that_was_forgotten_is_decided_once_more_by_the_same_rule_and_not_counted_again() {
    for steer in [Steer::SkLookup, Steer::SkAssign] {
        let net = Topology::three().unwrap();
        net.gateway.enter(|| {
            let instance = remembering(steer, rules(), 1);
            for cookies in SYN_COOKIES {
                net.gateway.set_sysctl("net.ipv4.tcp_syncookies", cookies).unwrap();
                for (client, to, rule) in Family::ALL.into_iter().flat_map(|family| {
                    [
                        (&net.client, family.server(), "forwarded"),
                        (&net.client, family.lan(), "inbound"),
                        (&net.gateway, family.server(), "outbound"),
                    ]
                }) {
                    let (mut stream, held_back) = begun(client, (to, PORT).into());
                    assert_eq!(instance.datapath.forget_decisions(), 1);
                    // The client says it again.
                    drop(held_back);
                    let mut text = String::new();
                    let told = stream.read_to_string(&mut text);
                    told.unwrap_or_else(|error| panic!("{steer:?}, syncookies {cookies}, {to}: {error}"));
                    assert_eq!(text.trim_end(), rule, "{steer:?}, syncookies {cookies}, {to}");
                }
            }
            let hits = instance.datapath.rule_hits().unwrap();
            let of = |names: [&str; 3]| names.map(|name| hits[name]);
            assert_eq!(of(["forwarded", "inbound", "outbound"]), [4; 3]);
            assert_eq!(hits["another interface's"] + hits["another user's"], 0);
            let tcp = instance.tcp();
            assert_eq!((tcp.accepted, tcp.ended(End::Undecided)), (12, 0), "{tcp}");
            assert_eq!(tcp.decided_again, 12, "{tcp}");
            instance.stop().unwrap();
        });
    }
}

#[test]
fn a_connection_that_was_forgotten_and_that_no_rule_selects_by_now_is_reset() {
    let net = Topology::three().unwrap();
    net.gateway.enter(|| {
        let mut instance = remembering(Steer::SkLookup, rules(), 1);
        let (mut stream, held_back) = begun(&net.client, (Family::V4.server(), PORT).into());
        let others = rules().into_iter().filter(|rule| &*rule.name != "forwarded").collect();
        instance.reload(Config { rules: others, ..instance.config().clone() }).unwrap();
        assert_eq!(instance.datapath.forget_decisions(), 1);
        drop(held_back);
        let error = stream.read(&mut [0; 64]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(instance.tcp().ended(End::Undecided), 1);
        instance.stop().unwrap();
    });
}
