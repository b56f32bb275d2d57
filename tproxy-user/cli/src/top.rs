//! `tproxy top`: a running instance, full screen, as it goes.

mod app;
mod keys;
mod sample;
mod view;

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use anyhow::{anyhow, ensure};
use futures_util::StreamExt as _;
use hyper::Method;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{Event, EventStream, KeyEventKind},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};
use tproxy::flows::{Filter, FlowId};

use crate::{
    ask::{InstanceArgs, with_query},
    control::{Closed, client::Client},
};
use app::App;
use keys::Wish;
use sample::Sample;

/// Between two looks.
const REFRESH: Duration = Duration::from_secs(1);

/// `tproxy top`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    instance: InstanceArgs,
    #[command(flatten)]
    filter: Filter,
}

/// Shows it until the user has seen enough. The terminal is then as it was, also after a panic.
///
/// # Errors
/// There is no instance, or no terminal.
pub async fn main(args: Args) -> anyhow::Result<()> {
    ensure!(
        io::stdout().is_terminal() && io::stdin().is_terminal(),
        "this is not a terminal; `tproxy flows --follow` writes lines"
    );
    let client = Client::new(args.instance.name);
    let mut app = App::new(args.filter);
    app.take(sample(&client, &app).await?);
    let cannot_draw = |error: io::Error| anyhow!("cannot use the terminal: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot_draw)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(cannot_draw)?;
    let (mut terminal, _restored) = take_terminal().map_err(cannot_draw)?;
    let mut events = EventStream::new();
    let mut ticks = interval(REFRESH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| view::draw(frame, &mut app)).map_err(cannot_draw)?;
        let wish = tokio::select! {
            _ = ticks.tick() => if app.is_paused() { Wish::Nothing } else { Wish::Refresh },
            event = events.next() => match event {
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => keys::press(&mut app, key),
                Some(Ok(_)) => Wish::Nothing,
                Some(Err(error)) => return Err(cannot_draw(error)),
                None => Wish::Quit,
            },
            _ = terminate.recv() => Wish::Quit,
            _ = hangup.recv() => Wish::Quit,
        };
        match wish {
            Wish::Nothing => {}
            Wish::Quit => return Ok(()),
            Wish::Refresh => refresh(&client, &mut app).await,
            Wish::Close(id) => {
                app.say(close(&client, id).await);
                refresh(&client, &mut app).await;
            }
        }
    }
}

/// What cannot be seen now may be seen again later.
async fn refresh(client: &Client, app: &mut App) {
    match sample(client, app).await {
        Ok(sample) => app.take(sample),
        Err(error) => app.say(error.to_string()),
    }
}

async fn sample(client: &Client, app: &App) -> anyhow::Result<Sample> {
    let status = client.ask(Method::GET, "/status").await?;
    let rules = client.ask(Method::GET, "/rules").await?;
    let flows = client.ask(Method::GET, &with_query("/flows", app.filter())?).await?;
    Ok(Sample { status, rules, flows })
}

async fn close(client: &Client, id: FlowId) -> String {
    let closed = async {
        let path = with_query("/close", &Filter { id: Some(id), ..Filter::default() })?;
        anyhow::Ok(client.ask::<Closed>(Method::POST, &path).await?.closed)
    };
    match closed.await {
        Ok(0) => format!("flow {id} had ended by itself"),
        Ok(_) => format!("flow {id} was closed"),
        Err(error) => error.to_string(),
    }
}

/// The whole screen, until the guard is dropped. A panic gives it back before it says what happened.
fn take_terminal() -> io::Result<(DefaultTerminal, Restored)> {
    Ok((ratatui::try_init()?, Restored))
}

struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

#[cfg(test)]
mod tests;
