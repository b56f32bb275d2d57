//! What each request means, and its answer.

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Bytes, Frame, Incoming},
    header::{ALLOW, CONTENT_TYPE},
};
use serde::Serialize;
use tokio::{sync::oneshot, task::spawn_blocking};
use tproxy::{
    datapath::MapUse,
    flows::{Filter, Followed, Follower, ShownFlow},
    upstreams::Pool,
};

use super::{
    Access, Checked, Closed, Confirmed, Failure, FlowEvent, Reloaded, ShownDraining, ShownRule,
    ShownUpstream, Status, server::Shown,
};
use crate::{
    metrics,
    run::{Command, Reply},
};

/// That a reload may wait to be confirmed.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// For how long metrics are not counted again; Prometheus asks every fifteen seconds or so.
const SCRAPED_ANEW: Duration = Duration::from_secs(1);

/// Of an answer.
type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What somebody asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// What can be asked.
    Index,
    /// How the instance is.
    Status,
    /// Its rules.
    Rules,
    /// The servers that they go by.
    Upstreams,
    /// Live flows.
    Flows(Filter),
    /// The same, and each that begins or ends.
    Follow(Filter),
    /// What Prometheus asks.
    Metrics,
    /// To end flows.
    Close(Filter),
    /// To read the configuration again, to be confirmed within a time.
    Reload(Option<Duration>),
    /// What a reload of this file would change.
    Check(PathBuf),
    /// To keep what a reload brought.
    Confirm,
    /// To take no new flow, and stop.
    Drain,
}

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Of the answer.
    pub status: StatusCode,
    /// One line, for whoever asks.
    pub error: String,
    allow: Option<Method>,
}

/// Something that can be asked.
struct Route {
    method: Method,
    path: &'static str,
    /// What it is, for [`Asked::Index`].
    what: &'static str,
    asks: Asks,
}

/// How a request says what it asks.
enum Asks {
    /// By its path alone.
    ByPath(fn() -> Asked),
    /// By its query too.
    ByQuery(fn(&str) -> Result<Asked, Refusal>),
}

impl Route {
    const fn get(path: &'static str, what: &'static str, asks: Asks) -> Self {
        Self { method: Method::GET, path, what, asks }
    }

    const fn post(path: &'static str, what: &'static str, asks: Asks) -> Self {
        Self { method: Method::POST, path, what, asks }
    }
}

/// Everything that can be asked.
static ROUTES: [Route; 13] = [
    Route::get("/status", "how the instance is, and what it has counted", Asks::ByPath(|| Asked::Status)),
    Route::get("/rules", "the rules in order, with their hits", Asks::ByPath(|| Asked::Rules)),
    Route::get(
        "/upstreams",
        "the servers that rules go by: their state, latency and failures",
        Asks::ByPath(|| Asked::Upstreams),
    ),
    Route::get(
        "/flows",
        "the live flows; ?id= ?proto= ?scope= ?rule= ?client= ?dst= ?upstream= ?state= select some",
        Asks::ByQuery(|query| filter(query).map(Asked::Flows)),
    ),
    Route::get(
        "/flows/follow",
        "the same, and then each that begins or ends, one JSON object a line",
        Asks::ByQuery(|query| filter(query).map(Asked::Follow)),
    ),
    Route::get("/metrics", "for Prometheus, in the OpenMetrics format", Asks::ByPath(|| Asked::Metrics)),
    Route::post("/close", "end the flows that the query selects, as for /flows", Asks::ByQuery(close)),
    Route::post("/close/all", "end all flows", Asks::ByPath(|| Asked::Close(Filter::default()))),
    Route::post(
        "/reload",
        "read the configuration file again; ?confirm=30s goes back unless /confirm comes in time",
        Asks::ByQuery(|query| reload(query).map(Asked::Reload)),
    ),
    Route::get(
        "/check",
        "what a reload of another file would change: ?file=/etc/tproxy.toml",
        Asks::ByQuery(|query| check(query).map(Asked::Check)),
    ),
    Route::post("/confirm", "keep what a reload brought", Asks::ByPath(|| Asked::Confirm)),
    Route::post(
        "/drain",
        "take no new flow, and stop when the live ones have ended",
        Asks::ByPath(|| Asked::Drain),
    ),
    Route::get("/", "this list", Asks::ByPath(|| Asked::Index)),
];

impl Refusal {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), allow: None }
    }

    fn ending() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the instance is about to end")
    }
}

/// What a request asks. Whoever wrote it, it is understood or refused.
///
/// # Errors
/// Why it is refused.
pub fn understand(method: &Method, path: &str, query: &str) -> Result<Asked, Refusal> {
    let no_such_path =
        || Refusal::new(StatusCode::NOT_FOUND, format!("there is no {path}; GET / lists what there is"));
    let route = ROUTES.iter().find(|route| route.path == path).ok_or_else(no_such_path)?;
    let wanted = &route.method;
    if method != wanted {
        let error = format!("{path} wants the method {wanted}, not {method}");
        let allow = Some(wanted.clone());
        return Err(Refusal { allow, ..Refusal::new(StatusCode::METHOD_NOT_ALLOWED, error) });
    }
    match route.asks {
        Asks::ByQuery(asks) => asks(query),
        Asks::ByPath(asks) if query.is_empty() => Ok(asks()),
        Asks::ByPath(_) => {
            Err(Refusal::new(StatusCode::BAD_REQUEST, format!("{path} takes no query: leave out '{query}'")))
        }
    }
}

/// Which flows.
fn filter(query: &str) -> Result<Filter, Refusal> {
    serde_urlencoded::from_str(query)
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("the query '{query}': {error}")))
}

/// Which flows to close: by a query that is forgotten, not all of them.
fn close(query: &str) -> Result<Asked, Refusal> {
    match filter(query)? {
        filter if filter.is_empty() => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "say which flows, such as /close?id=7 or /close?client=10.0.0.5; /close/all ends all of them",
        )),
        filter => Ok(Asked::Close(filter)),
    }
}

/// Within which time a reload has to be confirmed, if it has to be.
fn reload(query: &str) -> Result<Option<Duration>, Refusal> {
    let Some(time) = (!query.is_empty()).then(|| query.strip_prefix("confirm=")) else { return Ok(None) };
    let time = time
        .and_then(|time| humantime::parse_duration(time).ok())
        .filter(|time| !time.is_zero() && *time <= LONGEST);
    let wrong = || {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            format!("the query '{query}': write confirm=TIME, such as confirm=30s"),
        )
    };
    time.map(Some).ok_or_else(wrong)
}

/// Which file is to be read.
fn check(query: &str) -> Result<PathBuf, Refusal> {
    let checked = serde_urlencoded::from_str::<Checked>(query).ok().map(|checked| checked.file);
    let wrong =
        || Refusal::new(StatusCode::BAD_REQUEST, format!("the query '{query}': write file=/PATH, once"));
    checked.filter(|file| file.is_absolute()).ok_or_else(wrong)
}

pub(super) async fn answer(request: &Request<Incoming>, access: Access, shown: &Shown) -> Response<Body> {
    let answered = match allowed(request, access) {
        Ok(asked) => carry_out(asked, shown).await,
        Err(refusal) => Err(refusal),
    };
    answered.unwrap_or_else(|refusal| {
        let mut response = json(&Failure { error: refusal.error });
        *response.status_mut() = refusal.status;
        if let Some(value) = refusal.allow.and_then(|method| method.as_str().parse().ok()) {
            response.headers_mut().insert(ALLOW, value);
        }
        response
    })
}

fn allowed(request: &Request<Incoming>, access: Access) -> Result<Asked, Refusal> {
    let refuse = |status, error: &str| Err(Refusal::new(status, error));
    if access == Access::Nobody {
        return refuse(StatusCode::FORBIDDEN, "only root and the user that tproxy runs as may ask");
    }
    if !request.body().is_end_stream() {
        return refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            "no request has a body: parameters belong in the query",
        );
    }
    let asked =
        understand(request.method(), request.uri().path(), request.uri().query().unwrap_or_default())?;
    if access == Access::Metrics && asked != Asked::Metrics {
        return refuse(
            StatusCode::NOT_FOUND,
            "there is only /metrics here; the rest is at the control socket",
        );
    }
    Ok(asked)
}

async fn carry_out(asked: Asked, shown: &Shown) -> Result<Response<Body>, Refusal> {
    let look = || ask(shown, |reply| Command::Look { reply });
    match asked {
        Asked::Index => {
            let entry = |Route { method, path, what, .. }: &Route| serde_json::json!({"method": method.as_str(), "path": path, "what": what});
            Ok(json(&ROUTES.iter().map(entry).collect::<Vec<_>>()))
        }
        Asked::Status => look().await.map(|look| json(&Status::of(&look, shown))),
        Asked::Rules => {
            let look = look().await?;
            let live = shown.flows.select(&Filter::default());
            Ok(json(&ShownRule::all(&look, &live)))
        }
        Asked::Upstreams => {
            let shown = |pool: &Arc<Pool>| ShownUpstream::of(pool);
            look().await.map(|look| json(&look.upstreams.iter().map(shown).collect::<Vec<_>>()))
        }
        Asked::Flows(filter) => {
            let now = Instant::now();
            let flows = shown.flows.select(&filter);
            Ok(json(&flows.iter().map(|flow| ShownFlow::of(flow, now)).collect::<Vec<_>>()))
        }
        Asked::Follow(filter) => Ok(follow(filter, shown)),
        Asked::Metrics => {
            let text = scrape(shown).await?;
            Ok(response(metrics::CONTENT_TYPE, Full::from(text).boxed_unsync()))
        }
        Asked::Close(filter) => Ok(json(&Closed { closed: shown.flows.close(&filter) })),
        Asked::Reload(confirm) => {
            let changes = ask(shown, |reply| Command::Reload { confirm, reply }).await?;
            let confirm_within_seconds = confirm.map(|time| time.as_secs_f64());
            Ok(json(&Reloaded { changes: changes.to_string(), confirm_within_seconds }))
        }
        Asked::Check(file) => {
            ask(shown, |reply| Command::Check { file, reply }).await.map(|changes| json(&changes))
        }
        Asked::Confirm => {
            ask(shown, |reply| Command::Confirm { reply }).await?;
            Ok(json(&Confirmed { confirmed: true }))
        }
        Asked::Drain => {
            let draining = ask(shown, |reply| Command::Drain { reply }).await?;
            Ok(json(&ShownDraining { live: draining.live, limit_seconds: draining.limit.as_secs_f64() }))
        }
    }
}

/// What metrics say now, or said a moment ago: counting takes time, and who asks often, or all at once, gets what is there.
async fn scrape(shown: &Shown) -> Result<Bytes, Refusal> {
    // Whoever comes meanwhile waits for the one who counts.
    let mut last = shown.scraped.lock().await;
    if let Some((when, text)) = &*last
        && when.elapsed() < SCRAPED_ANEW
    {
        return Ok(text.clone());
    }
    let look = ask(shown, |reply| Command::Look { reply }).await?;
    let maps = maps(shown).await?;
    let reloads = ask(shown, |reply| Command::Reloads { reply }).await?;
    let uptime = shown.started.elapsed();
    let text = Bytes::from(metrics::encode(&metrics::Observed { look: &look, reloads, maps: &maps, uptime }));
    *last = Some((Instant::now(), text.clone()));
    Ok(text)
}

/// How full the maps are. Of a large one, counting takes tenths of a second: that is done by a thread of its own, and for no
/// more than a hundredth of the time, however often somebody asks.
async fn maps(shown: &Shown) -> Result<Vec<MapUse>, Refusal> {
    const OF_THE_TIME: u32 = 100;
    let mut last = shown.counted.lock().await;
    if let Some((again, maps)) = &*last
        && Instant::now() < *again
    {
        return Ok(maps.clone());
    }
    let filling = ask(shown, |reply| Command::Maps { reply }).await?;
    let begun = Instant::now();
    let maps = spawn_blocking(|| filling.count()).await.map_err(|_panicked| Refusal::ending())?;
    *last = Some((Instant::now() + begun.elapsed() * OF_THE_TIME, maps.clone()));
    Ok(maps)
}

/// Has the main loop carry out a command, and waits for the reply.
async fn ask<T>(shown: &Shown, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Refusal> {
    let (reply, replied) = oneshot::channel();
    shown.commands.send(command(reply)).await.map_err(|_| Refusal::ending())?;
    let outcome = replied.await.map_err(|_| Refusal::ending())?;
    outcome.map_err(|refused| Refusal::new(StatusCode::CONFLICT, refused.to_string()))
}

/// The live flows, and then what happens to flows, until the client goes.
fn follow(filter: Filter, shown: &Shown) -> Response<Body> {
    // First, so that none is missed in between; some may be told twice.
    let follower = shown.flows.follow();
    let now = Instant::now();
    let live = shown.flows.select(&filter);
    let live = live.into_iter().map(move |flow| line(&FlowEvent::Live(ShownFlow::of(&flow, now))));
    let events = stream::unfold((follower, filter), async |(mut follower, filter)| {
        let event = next(&mut follower, &filter).await?;
        Some((line(&event), (follower, filter)))
    });
    let lines = stream::iter(live).chain(events.take_until(shown.ending.clone().cancelled_owned()));
    let frames = lines.map(|line| Ok::<_, Infallible>(Frame::data(Bytes::from(line))));
    response("application/x-ndjson", StreamBody::new(frames).boxed_unsync())
}

async fn next(follower: &mut Follower, filter: &Filter) -> Option<FlowEvent> {
    loop {
        let event = follower.next().await?;
        let now = Instant::now();
        match event {
            Followed::Began(flow) if filter.selects(&flow) => {
                return Some(FlowEvent::Began(ShownFlow::of(&flow, now)));
            }
            Followed::Ended(flow) if filter.selects(&flow) => {
                return Some(FlowEvent::Ended(ShownFlow::of(&flow, now)));
            }
            Followed::Began(_) | Followed::Ended(_) => {}
            Followed::Missed(events) => return Some(FlowEvent::Missed { events }),
        }
    }
}

fn line(event: &FlowEvent) -> String {
    let mut line = serde_json::to_string(event).expect("plain data is JSON");
    line.push('\n');
    line
}

fn json(answer: &impl Serialize) -> Response<Body> {
    let mut text = serde_json::to_string_pretty(answer).expect("plain data is JSON");
    text.push('\n');
    response("application/json", Full::from(text).boxed_unsync())
}

fn response(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, content_type.parse().expect("it is one"));
    response
}
