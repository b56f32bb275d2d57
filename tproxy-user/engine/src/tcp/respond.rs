//! Answering in place of a server.

use std::{io, net::Shutdown, time::Duration};

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use super::{
    End,
    connection::{Connection, Ended, client_failed},
};

/// A client that has said nothing for so long wants to be spoken to first.
const SILENCE: Duration = Duration::from_secs(1);

/// A client that is still not done with its request after so long gets its answer regardless.
const REQUEST_TIME: Duration = Duration::from_secs(10);

/// An HTTP request whose head is longer than this gets its answer regardless.
const HEAD_LIMIT: usize = 16 * 1024;

/// How long a client may take to close after it was answered.
const LINGER_TIME: Duration = Duration::from_secs(5);

/// How much of a request's body is thrown away so that the client gets to see the answer.
const LINGER_LIMIT: u64 = 64 * 1024 * 1024;

/// What the first bytes of a client look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    /// An HTTP/1.x request whose answer has no body.
    Head,
    /// Any other HTTP/1.x request.
    Http,
    /// Something else, or nothing.
    Other,
}

/// Gives the client `text`, and lets it close.
pub(super) async fn respond(client: &TcpStream, text: &str, connection: &mut Connection) -> Ended {
    exchange(client, text, connection).await.map_or_else(|error| client_failed(&error), Ended::from)
}

async fn exchange(client: &TcpStream, text: &str, connection: &mut Connection) -> io::Result<End> {
    let request = request(client, connection).await?;
    let answer = answer(request, text);
    let Ok(written) = timeout(connection.idle_timeout(), write(client, &answer, connection)).await else {
        return Ok(End::IdleTimeout);
    };
    written?;
    // Closing now would reset the client if it has sent more than we have read, and a reset makes it
    // throw away an answer that it has not read yet.
    SockRef::from(client).shutdown(Shutdown::Write)?;
    timeout(LINGER_TIME, discard(client, connection)).await.unwrap_or(Ok(End::IdleTimeout))
}

/// Reads until it is clear what the client speaks, or the client says no more.
async fn request(client: &TcpStream, connection: &mut Connection) -> io::Result<Request> {
    let deadline = Instant::now() + REQUEST_TIME;
    let mut head = Vec::new();
    loop {
        let Ok(readable) = timeout_at(deadline.min(Instant::now() + SILENCE), client.readable()).await else {
            return Ok(Request::Other);
        };
        readable?;
        head.reserve(HEAD_LIMIT / 8);
        match client.try_read_buf(&mut head) {
            Ok(0) => return Ok(Request::Other),
            Ok(length) => connection.up.read += length as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        if let Some(request) = recognise(&head) {
            return Ok(request);
        }
    }
}

/// `None` as long as more bytes could make it an HTTP request.
fn recognise(head: &[u8]) -> Option<Request> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) if head.len() < HEAD_LIMIT => None,
        // Whoever got as far as the version speaks HTTP, be the header lines as they may.
        _ if request.version.is_none() => Some(Request::Other),
        _ if request.method == Some("HEAD") => Some(Request::Head),
        _ => Some(Request::Http),
    }
}

fn answer(request: Request, text: &str) -> String {
    let body = match request {
        Request::Other => return format!("{text}\n"),
        Request::Head => "",
        Request::Http => text,
    };
    let length = text.len();
    format!(
        "HTTP/1.1 200 OK\r\n\
         Content-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {length}\r\n\
         Cache-Control: no-store\r\n\
         Connection: close\r\n\
         \r\n\
         {body}"
    )
}

async fn write(client: &TcpStream, answer: &str, connection: &mut Connection) -> io::Result<()> {
    let mut unwritten = answer.as_bytes();
    while !unwritten.is_empty() {
        client.writable().await?;
        match client.try_write(unwritten) {
            Ok(length) => {
                unwritten = &unwritten[length..];
                connection.down.written += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads what the client still sends, until it closes.
async fn discard(client: &TcpStream, connection: &mut Connection) -> io::Result<End> {
    let limit = connection.up.read + LINGER_LIMIT;
    while connection.up.read < limit {
        client.readable().await?;
        let mut buffer = connection.shared.buffers.take();
        let result = client.try_read(&mut buffer);
        connection.shared.buffers.give_back(buffer);
        match result {
            Ok(0) => return Ok(End::Eof),
            Ok(length) => connection.up.read += length as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(End::IdleTimeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_is_recognised_by_its_first_bytes() {
        for (bytes, expected) in [
            ("", None),
            ("GE", None),
            ("GET / HTTP/1.1\r\nHost: a\r\n", None),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Some(Request::Http)),
            ("GET / HTTP/1.0\r\n\r\n", Some(Request::Http)),
            ("HEAD / HTTP/1.1\r\n\r\n", Some(Request::Head)),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\na", Some(Request::Http)),
            ("GET / HTTP/1.1\r\nno colon\r\n\r\n", Some(Request::Http)),
            ("GET /\r\n", Some(Request::Other)),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Request::Other)),
            ("SSH-2.0-OpenSSH_9.2\r\n", Some(Request::Other)),
            ("\x16\x03\x01\x02\x00", Some(Request::Other)),
        ] {
            assert_eq!(recognise(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }

    #[test]
    fn an_endless_head_is_answered() {
        let head = format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(HEAD_LIMIT));
        assert_eq!(recognise(head.as_bytes()), Some(Request::Http));
        assert_eq!(recognise(&vec![b'A'; HEAD_LIMIT]), Some(Request::Other));
    }

    #[test]
    fn many_headers_are_still_http() {
        let head = format!("HEAD / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100));
        assert_eq!(recognise(head.as_bytes()), Some(Request::Head));
    }

    #[test]
    fn the_length_counts_bytes_and_a_head_answer_has_no_body() {
        let full = answer(Request::Http, "grüß");
        assert!(full.contains("Content-Length: 6\r\n") && full.ends_with("\r\n\r\ngrüß"), "{full}");
        let head = answer(Request::Head, "grüß");
        assert!(head.contains("Content-Length: 6\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        assert_eq!(answer(Request::Other, "grüß"), "grüß\n");
    }
}
