//! SOCKS5 (RFC 1928), as a client that wants a connection; with a user name and a password (RFC 1929), where it has them.

use std::{io::ErrorKind, net::SocketAddr};

use super::{DialogueError, Told, Turn};
use crate::config::Credentials;

const VERSION: u8 = 5;
/// Ways to log in.
const NO_LOGIN: u8 = 0;
const PASSWORD: u8 = 2;
const NO_ACCEPTABLE: u8 = 0xff;
/// Of what is said to log in.
const LOGIN_VERSION: u8 = 1;
/// A command, and kinds of addresses.
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Greeting,
    AwaitingMethod,
    Login,
    AwaitingWelcome,
    Request,
    AwaitingReply,
    Done,
}

#[derive(Debug)]
pub(in super::super) struct Dialogue {
    stage: Stage,
    /// None where it is only to be seen whether the server is there.
    dst: Option<SocketAddr>,
    credentials: Option<Credentials>,
}

impl Dialogue {
    pub(super) fn new(told: &Told, credentials: Option<&Credentials>) -> Self {
        Self { stage: Stage::Greeting, dst: Some(told.dst.0), credentials: credentials.cloned() }
    }

    /// No further than to the request.
    pub(super) fn of_nothing(credentials: Option<&Credentials>) -> Self {
        Self { stage: Stage::Greeting, dst: None, credentials: credentials.cloned() }
    }

    pub(super) fn turn(&mut self) -> Turn {
        match self.stage {
            Stage::Greeting => {
                self.stage = Stage::AwaitingMethod;
                Turn::Say(match self.credentials {
                    Some(_) => vec![VERSION, 2, NO_LOGIN, PASSWORD],
                    None => vec![VERSION, 1, NO_LOGIN],
                })
            }
            Stage::Login => {
                self.stage = Stage::AwaitingWelcome;
                Turn::Say(self.credentials.as_ref().map(login).unwrap_or_default())
            }
            Stage::Request => match self.dst {
                Some(dst) => {
                    self.stage = Stage::AwaitingReply;
                    Turn::Say(request(dst))
                }
                None => Turn::Relay,
            },
            Stage::AwaitingMethod | Stage::AwaitingWelcome | Stage::AwaitingReply => Turn::Hear,
            Stage::Done => Turn::Relay,
        }
    }

    pub(super) fn hear(&mut self, seen: &[u8]) -> Result<Option<usize>, DialogueError> {
        let length = match self.stage {
            Stage::AwaitingMethod => self.method(seen)?,
            Stage::AwaitingWelcome => self.welcome(seen)?,
            _ => self.reply(seen)?,
        };
        Ok(length)
    }

    fn method(&mut self, seen: &[u8]) -> Result<Option<usize>, DialogueError> {
        version(seen)?;
        let Some(method) = seen.get(1) else { return Ok(None) };
        self.stage = match *method {
            NO_LOGIN => Stage::Request,
            PASSWORD if self.credentials.is_some() => Stage::Login,
            NO_ACCEPTABLE => {
                return Err(DialogueError::Unauthorized(
                    "it wants another way to log in than it is offered".to_owned(),
                ));
            }
            other => {
                return Err(DialogueError::Nonsense(format!(
                    "a way to log in ({other}) that it was not offered"
                )));
            }
        };
        Ok(Some(2))
    }

    fn welcome(&mut self, seen: &[u8]) -> Result<Option<usize>, DialogueError> {
        match seen {
            [] | [LOGIN_VERSION] => return Ok(None),
            [LOGIN_VERSION, 0, ..] => self.stage = Stage::Request,
            [LOGIN_VERSION, ..] => {
                return Err(DialogueError::Unauthorized(
                    "it does not accept user name and password".to_owned(),
                ));
            }
            _ => return Err(DialogueError::Nonsense("no answer to a login".to_owned())),
        }
        Ok(Some(2))
    }

    fn reply(&mut self, seen: &[u8]) -> Result<Option<usize>, DialogueError> {
        version(seen)?;
        // One that refuses may say no more than that.
        let Some(reply) = seen.get(1) else { return Ok(None) };
        refusal(*reply).map_or(Ok(()), Err)?;
        let Some(kind) = seen.get(3) else { return Ok(None) };
        let address = match (*kind, seen.get(4)) {
            (IPV4, _) => 4,
            (IPV6, _) => 16,
            (NAME, Some(length)) => 1 + usize::from(*length),
            (NAME, None) => return Ok(None),
            (other, _) => {
                return Err(DialogueError::Nonsense(format!("an address of kind {other}, which is none")));
            }
        };
        let length = 4 + address + 2;
        if seen.len() < length {
            return Ok(None);
        }
        self.stage = Stage::Done;
        Ok(Some(length))
    }
}

/// Both are of at most 255 bytes.
fn login(credentials: &Credentials) -> Vec<u8> {
    let mut words = vec![LOGIN_VERSION];
    for part in [credentials.user(), credentials.password()] {
        words.push(part.len() as u8);
        words.extend(part.bytes());
    }
    words
}

fn request(dst: SocketAddr) -> Vec<u8> {
    let mut words = vec![VERSION, CONNECT, 0];
    match dst {
        SocketAddr::V4(dst) => {
            words.push(IPV4);
            words.extend(dst.ip().octets());
        }
        SocketAddr::V6(dst) => {
            words.push(IPV6);
            words.extend(dst.ip().octets());
        }
    }
    words.extend(dst.port().to_be_bytes());
    words
}

fn version(seen: &[u8]) -> Result<(), DialogueError> {
    match seen.first() {
        None | Some(&VERSION) => Ok(()),
        Some(other) => Err(DialogueError::Nonsense(format!(
            "it begins with {other:#04x}, and SOCKS5 with {VERSION:#04x}"
        ))),
    }
}

/// What each reply but the first says (RFC 1928, 6).
fn refusal(reply: u8) -> Option<DialogueError> {
    use DialogueError::{Denied, Failed, NotConnected};
    Some(match reply {
        0 => return None,
        1 => Failed("it failed, and does not say why (SOCKS5 reply 1)".to_owned()),
        2 => Denied("its rules do not allow the destination (SOCKS5 reply 2)".to_owned()),
        3 => NotConnected(
            "it cannot reach the destination's network (SOCKS5 reply 3)",
            ErrorKind::NetworkUnreachable,
        ),
        4 => NotConnected("it cannot reach the destination (SOCKS5 reply 4)", ErrorKind::HostUnreachable),
        5 => NotConnected("the destination refused (SOCKS5 reply 5)", ErrorKind::ConnectionRefused),
        6 => NotConnected(
            "the way to the destination is too long (SOCKS5 reply 6)",
            ErrorKind::HostUnreachable,
        ),
        7 => Failed("it does not connect (SOCKS5 reply 7: command not supported)".to_owned()),
        8 => Failed("it does not know the destination's address family (SOCKS5 reply 8)".to_owned()),
        other => DialogueError::Nonsense(format!("a reply ({other}) that means nothing")),
    })
}
