//! What is said and heard, whatever pieces it comes in.

use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;

const FOUR: &str = "192.0.2.7:443";
const SIX: &str = "[2001:db8::7]:443";

fn told(dst: &str) -> Told {
    let dst: SocketAddr = dst.parse().unwrap();
    let client = if dst.is_ipv4() { "10.0.0.1:1000" } else { "[2001:db8::1]:1000" };
    Told { id: FlowId(42), client: ClientAddr(client.parse().unwrap()), dst: OriginalDst(dst) }
}

fn dialogue(scheme: Scheme, dst: &str) -> Dialogue {
    Dialogue::of(scheme, &told(dst), None).unwrap()
}

/// The whole dialogue with a server that says `answers`, each whole or up to its end: what it was told, and how much of the
/// last answer was left.
fn hold(mut dialogue: Dialogue, answers: &[&[u8]], step: usize) -> Result<(Vec<u8>, usize), DialogueError> {
    let (mut said, mut answers, mut left) = (Vec::new(), answers.iter(), &[][..]);
    loop {
        match dialogue.turn() {
            Turn::Say(words) => {
                said.extend(words);
                assert!(left.is_empty(), "it speaks before it has heard all");
                left = answers.next().copied().unwrap_or_default();
            }
            Turn::Hear => {
                let ends = (0..left.len()).step_by(step).chain([left.len()]);
                let heard = ends.map(|end| dialogue.hear(&left[..end])).find_map(Result::transpose);
                match heard {
                    Some(length) => left = &left[length?..],
                    None => return Err(DialogueError::Cut),
                }
            }
            Turn::Relay => return Ok((said, left.len())),
        }
    }
}

fn steps() -> impl Iterator<Item = usize> {
    [1, 2, 3, 7, usize::MAX >> 1].into_iter()
}

#[test]
fn socks5_says_where_to_and_leaves_what_is_behind_the_reply() {
    let request = |kind: u8, address: &[u8]| [&[5, 1, 0, 5, 1, 0, kind][..], address, &[1, 187]].concat();
    let six: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
    for (dst, said) in [(FOUR, request(1, &[192, 0, 2, 7])), (SIX, request(4, &six.octets()))] {
        for bound in [&[1, 0, 0, 0, 0][..], &[4; 17], &[3, 4, b'h', b'o', b's', b't']] {
            let reply = [&[5, 0, 0][..], bound, &[0, 0], b"SSH-2.0-"].concat();
            for step in steps() {
                let (heard, left) = hold(dialogue(Scheme::Socks5, dst), &[&[5, 0], &reply], step).unwrap();
                assert_eq!((heard, left), (said.clone(), 8), "{dst} {bound:?} {step}");
            }
        }
    }
}

#[test]
fn each_refusal_of_socks5_has_its_reason() {
    let ends = [
        (1, End::UpstreamFailed),
        (2, End::UpstreamDenied),
        (3, End::Unreachable),
        (4, End::Unreachable),
        (5, End::ConnectRefused),
        (6, End::Unreachable),
        (7, End::UpstreamFailed),
        (8, End::UpstreamFailed),
        (9, End::UpstreamNonsense),
    ];
    let mut texts = std::collections::HashSet::new();
    for (reply, end) in ends {
        let error = hold(dialogue(Scheme::Socks5, FOUR), &[&[5, 0], &[5, reply]], 1).unwrap_err();
        assert_eq!(error.end(), end, "{error}");
        assert!(texts.insert(error.to_string()), "{error}");
    }
    let refused = [
        (&[5, 0xff][..], End::UpstreamUnauthorized),
        (&[5, 2], End::UpstreamNonsense),
        (&[4, 0], End::UpstreamNonsense),
        (b"HTTP/1.1 400 Bad Request", End::UpstreamNonsense),
        (&[5], End::UpstreamCut),
    ];
    for (method, end) in refused {
        let error = hold(dialogue(Scheme::Socks5, FOUR), &[method], 1).unwrap_err();
        assert_eq!(error.end(), end, "{error}");
    }
}

#[test]
fn credentials_are_said_to_who_wants_them() {
    let credentials = Credentials::parse("corp.secret".into(), b"me:secret").unwrap();
    let hold = |scheme, answers: &[&[u8]]| {
        hold(Dialogue::of(scheme, &told(FOUR), Some(&credentials)).unwrap(), answers, 1)
    };
    let reply = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let request = [5, 1, 0, 1, 192, 0, 2, 7, 1, 187];
    let login = [&[1, 2][..], b"me", &[6], b"secret"].concat();
    let said = [&[5, 2, 0, 2][..], &login, &request].concat();
    assert_eq!(hold(Scheme::Socks5, &[&[5, 2], &[1, 0], &reply]).unwrap(), (said, 0));
    assert_eq!(
        hold(Scheme::Socks5, &[&[5, 0], &reply]).unwrap(),
        ([&[5, 2, 0, 2][..], &request].concat(), 0)
    );
    for (answer, end) in [([1, 1], End::UpstreamUnauthorized), ([5, 0], End::UpstreamNonsense)] {
        let error = hold(Scheme::Socks5, &[&[5, 2], &answer]).unwrap_err();
        assert_eq!(error.end(), end, "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    let (said, _) = hold(Scheme::Http, &[b"HTTP/1.1 200 OK\r\n\r\n"]).unwrap();
    assert!(
        said.ends_with(b"\r\nProxy-Authorization: Basic bWU6c2VjcmV0\r\n\r\n"),
        "{}",
        said.escape_ascii()
    );
}

#[test]
fn connect_names_the_destination_and_leaves_what_is_behind_the_answer() {
    for (dst, said) in [
        (FOUR, "CONNECT 192.0.2.7:443 HTTP/1.1\r\nHost: 192.0.2.7:443\r\n\r\n"),
        (SIX, "CONNECT [2001:db8::7]:443 HTTP/1.1\r\nHost: [2001:db8::7]:443\r\n\r\n"),
    ] {
        for answer in [
            "HTTP/1.0 200 Connection established\r\n\r\nSSH-2.0-",
            "HTTP/1.1 299\r\nContent-Length: 5\r\n\r\nSSH-2.0-",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nSSH-2.0-",
        ] {
            for step in steps() {
                let (heard, left) = hold(dialogue(Scheme::Http, dst), &[answer.as_bytes()], step).unwrap();
                assert_eq!((heard, left), (said.as_bytes().to_vec(), 8), "{dst} {answer} {step}");
            }
        }
    }
}

#[test]
fn each_refusal_of_connect_says_its_status_and_the_port() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(200));
    for (answer, end, words) in [
        ("HTTP/1.1 403 Forbidden\r\n\r\n", End::UpstreamDenied, "403 Forbidden to CONNECT to port 443"),
        ("HTTP/1.1 407 Who\r\nA: b\r\n\r\n", End::UpstreamUnauthorized, "407 Who"),
        ("HTTP/1.1 503 Busy\r\n\r\n", End::UpstreamFailed, "503 Busy"),
        ("HTTP/1.1 302 Found\r\n\r\n", End::UpstreamFailed, "302 Found"),
        ("SSH-2.0-OpenSSH\r\n", End::UpstreamNonsense, "no answer of HTTP"),
        ("HTTP/1.1 200 OK\r\nServer: x\r\n", End::UpstreamCut, "midst"),
        (&many, End::UpstreamTooMuch, "more than"),
    ] {
        for step in steps() {
            let error = hold(dialogue(Scheme::Http, FOUR), &[answer.as_bytes()], step).unwrap_err();
            assert_eq!(error.end(), end, "{answer} {error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}

#[test]
fn proxy_headers_say_who_and_where() {
    let said = |scheme, dst: &str| hold(dialogue(scheme, dst), &[b"SSH-2.0-"], 1).unwrap();
    for (dst, line) in [
        (FOUR, "PROXY TCP4 10.0.0.1 192.0.2.7 1000 443\r\n"),
        (SIX, "PROXY TCP6 2001:db8::1 2001:db8::7 1000 443\r\n"),
    ] {
        assert_eq!(said(Scheme::ProxyV1, dst), (line.as_bytes().to_vec(), 8));
        let (header, left) = said(Scheme::ProxyV2, dst);
        let parsed = ppp::v2::Header::try_from(&header[..]).unwrap();
        let told = told(dst);
        assert_eq!(parsed.addresses, ppp::v2::Addresses::from((told.client.0, told.dst.0)));
        assert_eq!((parsed.command, parsed.protocol), (ppp::v2::Command::Proxy, ppp::v2::Protocol::Stream));
        let values: Vec<_> = parsed.tlvs().map(Result::unwrap).collect();
        let [id] = &values[..] else { panic!("{values:?}") };
        assert_eq!((id.kind, &*id.value, left), (u8::from(ppp::v2::Type::UniqueId), &b"42"[..], 8));
    }
}

#[test]
fn who_is_only_looked_at_is_asked_for_no_connection() {
    let said = |scheme, answers: &[&[u8]]| hold(Dialogue::of_nothing(scheme, None).unwrap(), answers, 1);
    assert_eq!(said(Scheme::Socks5, &[&[5, 0]]).unwrap(), (vec![5, 1, 0], 0));
    assert_eq!(said(Scheme::Socks5, &[b"SSH"]).unwrap_err().end(), End::UpstreamNonsense);
    assert_eq!(said(Scheme::ProxyV1, &[]).unwrap().0, b"PROXY UNKNOWN\r\n");
    let (header, _) = said(Scheme::ProxyV2, &[]).unwrap();
    assert_eq!(ppp::v2::Header::try_from(&header[..]).unwrap().command, ppp::v2::Command::Local);
    assert!(
        [Scheme::Tcp, Scheme::Http].into_iter().all(|scheme| Dialogue::of_nothing(scheme, None).is_none())
    );
}

proptest! {
    #[test]
    fn any_answer_is_heard_without_a_panic_and_never_as_longer_than_it_is(
        answers in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 1..3),
        http in any::<bool>(),
    ) {
        let answers: Vec<&[u8]> = answers.iter().map(Vec::as_slice).collect();
        let scheme = if http { Scheme::Http } else { Scheme::Socks5 };
        let _ = hold(dialogue(scheme, FOUR), &answers, 1);
    }
}
