//! What a relay has others do.

use std::{net::IpAddr, time::Instant};

use tproxy_common::abi::Origin;

use super::super::{
    End,
    session::Record,
    table::{Flow, SessionId},
};
use crate::{generation::RuleNumber, socket::IcmpError};

/// Something to be done. Nobody waits for what comes of it.
#[derive(Debug)]
pub(in super::super) enum Command {
    /// A session's sockets are closed.
    Close(SessionId),
    /// A mapping's socket is.
    CloseMapping(u32),
    /// A session is to have a socket of its own towards the client: [`Relay::owns`](super::Relay::owns),
    /// [`Relay::owns_not`](super::Relay::owns_not).
    Own(SessionId, Flow),
    /// That is read from now on.
    Read(SessionId),
    /// A client is told that what it sent did not arrive.
    Notify {
        /// Who says so.
        reporter: IpAddr,
        error: IcmpError,
        flow: Flow,
    },
    /// The datapath forgets a flow.
    Forget(Flow),
    /// The datapath looks forward to one.
    Expect { flow: Flow, rule: RuleNumber, origin: Origin },
    /// The last line about a session is written.
    WriteDown { flow: Flow, record: Record, end: End, at: Instant },
}
