//! Looking whether the servers of upstreams are there, where their group wants it: by connecting, and by what can be said of
//! no flow.

use std::{convert::Infallible, io, rc::Rc, sync::Arc};

use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{dialogue::Dialogue, service::Shared, upstream::handshake};
use crate::{
    config::Credentials,
    socket::{self, UpstreamSource},
    upstreams::{Pool, Server},
};

/// A group, and when it is to be looked at next.
struct Due {
    pool: Arc<Pool>,
    at: Instant,
}

/// Looks for ever, at the groups of the latest rules.
pub(super) async fn serve(shared: Rc<Shared>) -> Infallible {
    let mut all: Vec<Due> = Vec::new();
    let mut looking = JoinSet::new();
    loop {
        // Before the rules are read, lest they change in between.
        let changed = shared.generations.changed();
        let now = Instant::now();
        all = due(&shared, all, now);
        for Due { pool, at } in all.iter_mut().filter(|due| due.at <= now) {
            let Some(check) = pool.group().check else { continue };
            *at = now + check.every;
            for server in pool.servers() {
                let (shared, pool, server) = (Rc::clone(&shared), Arc::clone(pool), Arc::clone(server));
                looking.spawn_local(async move {
                    let look = look(&shared, &server, pool.group().credentials.as_ref());
                    match timeout(check.every, look).await {
                        Ok(Ok(())) => server.succeeded(now.elapsed()),
                        Ok(Err(error)) => server.failed(&error.to_string()),
                        Err(_elapsed) => server.failed("no answer in time"),
                    }
                });
            }
        }
        let next = all.iter().map(|due| due.at).min();
        tokio::select! {
            () = changed => {}
            () = async { match next {
                Some(next) => sleep_until(next).await,
                None => std::future::pending().await,
            } } => {}
        }
        while looking.try_join_next().is_some() {}
    }
}

/// Those that are to be looked at; what was known of them before goes on.
fn due(shared: &Shared, known: Vec<Due>, now: Instant) -> Vec<Due> {
    let pools = shared.generations.latest().upstreams();
    let wanted = pools.into_iter().filter(|pool| pool.group().check.is_some());
    let at =
        |pool: &Arc<Pool>| known.iter().find(|due| Arc::ptr_eq(&due.pool, pool)).map_or(now, |due| due.at);
    wanted.map(|pool| Due { at: at(&pool), pool }).collect()
}

/// Connects as any process of this host does, and has the server say what it says to anybody.
async fn look(shared: &Shared, server: &Server, credentials: Option<&Credentials>) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in &*server.addresses().await? {
        let socket =
            socket::upstream(*address, UpstreamSource::Host, shared.mark).map_err(io::Error::other)?;
        let mut stream: TcpStream = match handshake(socket, *address, shared).await {
            Ok(stream) => stream,
            Err(error) => {
                last = error;
                continue;
            }
        };
        if let Some(dialogue) = Dialogue::of_nothing(server.url().scheme, credentials) {
            dialogue.hold(&mut stream).await.map_err(io::Error::other)?;
        }
        socket::close_in_order(&stream);
        return Ok(());
    }
    Err(last)
}
