//! What a table does for each datagram, by itself.

use std::{
    hint::black_box,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use super::{Flow, Sender, Table, TableLimits};
use crate::{
    config::SessionLimits,
    flow::{ClientAddr, OriginalDst},
};

const SESSIONS: u16 = 1_000;

/// A datagram there and one back, `times` times, in sessions that take turns.
pub fn exercise_sessions(times: usize) {
    const LONG: Duration = Duration::from_secs(60);
    let sessions = SessionLimits { total: SESSIONS.into(), per_client: SESSIONS.into() };
    let mut table = Table::new(TableLimits { sessions, one_way: LONG, two_way: LONG });
    let now = Instant::now();
    let flow = |port: u16| Flow {
        client: ClientAddr((Ipv4Addr::new(10, 1, (port / 8) as u8, 2), port).into()),
        dst: OriginalDst((Ipv4Addr::new(8, 8, 8, 8), 443).into()),
    };
    for port in 0..SESSIONS {
        table.insert(flow(port), (), now);
    }
    for port in (0..SESSIONS).cycle().take(times) {
        let Some(id) = table.find(black_box(&flow(port))) else { unreachable!("it was inserted") };
        table.used(id, Sender::Client, 1, now);
        table.used(id, Sender::Upstream, 1, now);
    }
}
