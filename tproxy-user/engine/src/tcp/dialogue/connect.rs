//! HTTP CONNECT (RFC 9110, 9.3.6), as a client.

use data_encoding::BASE64;

use super::{DialogueError, Told, Turn};
use crate::config::Credentials;

/// More lines than any proxy's.
const MOST_HEADERS: usize = 128;

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Request,
    AwaitingAnswer,
    Done,
}

#[derive(Debug)]
pub(in super::super) struct Dialogue {
    stage: Stage,
    told: Told,
    credentials: Option<Credentials>,
}

impl Dialogue {
    pub(super) fn new(told: &Told, credentials: Option<&Credentials>) -> Self {
        Self { stage: Stage::Request, told: *told, credentials: credentials.cloned() }
    }

    pub(super) fn turn(&mut self) -> Turn {
        match self.stage {
            Stage::Request => {
                self.stage = Stage::AwaitingAnswer;
                let authority = self.told.dst;
                let login = self.credentials.as_ref().map(basic).unwrap_or_default();
                Turn::Say(
                    format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{login}\r\n").into_bytes(),
                )
            }
            Stage::AwaitingAnswer => Turn::Hear,
            Stage::Done => Turn::Relay,
        }
    }

    pub(super) fn hear(&mut self, seen: &[u8]) -> Result<Option<usize>, DialogueError> {
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut answer = httparse::Response::new(&mut headers);
        let length = match answer.parse(seen) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(DialogueError::TooMuch),
            Err(error) => return Err(DialogueError::Nonsense(format!("no answer of HTTP: {error}"))),
        };
        let status = answer.code.unwrap_or_default();
        let port = self.told.dst.0.port();
        let said = || {
            // It is shown to people.
            let reason = answer.reason.unwrap_or_default().escape_debug();
            format!("it answered {status} {reason} to CONNECT to port {port}")
        };
        match status {
            // The answer is yet to come.
            100..=199 => {}
            200..=299 => self.stage = Stage::Done,
            407 => return Err(DialogueError::Unauthorized(said())),
            400..=499 => return Err(DialogueError::Denied(said())),
            _ => return Err(DialogueError::Failed(said())),
        }
        Ok(Some(length))
    }
}

/// A line with which we log in (RFC 7617).
fn basic(credentials: &Credentials) -> String {
    let plain = format!("{}:{}", credentials.user(), credentials.password());
    format!("Proxy-Authorization: Basic {}\r\n", BASE64.encode(plain.as_bytes()))
}
