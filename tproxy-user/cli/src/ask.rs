//! The subcommands that ask a running instance by its control socket, and what they print.

mod check;
mod tables;
mod units;

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{anyhow, ensure};
use hyper::Method;
use tproxy::{
    flows::{Filter, FlowId, ShownFlow},
    host::InstanceName,
};

use crate::{
    control::{
        Closed, Confirmed, FlowEvent, Reloaded, ShownDraining, ShownRule, ShownUpstream, Status,
        client::Client,
    },
    metrics::documentation,
};
pub use check::CheckArgs;
pub(crate) use units::{age, bytes};

/// Which instance.
#[derive(Debug, Clone, clap::Args)]
pub struct InstanceArgs {
    /// The instance of this name (default: as for `tproxy run`)
    #[arg(long)]
    pub name: Option<InstanceName>,
}

/// `tproxy status`, `tproxy rules` and `tproxy upstreams`
#[derive(Debug, clap::Args)]
pub struct AskArgs {
    #[command(flatten)]
    instance: InstanceArgs,
    /// Print what the instance answers
    #[arg(long)]
    json: bool,
}

/// `tproxy flows`
#[derive(Debug, clap::Args)]
pub struct FlowsArgs {
    #[command(flatten)]
    instance: InstanceArgs,
    #[command(flatten)]
    filter: Filter,
    /// Go on: print each flow that begins or ends, until interrupted
    #[arg(long)]
    follow: bool,
    /// Print what the instance answers; with --follow, an object a line
    #[arg(long)]
    json: bool,
}

/// `tproxy close`
#[derive(Debug, clap::Args)]
pub struct Close {
    /// Numbers of flows, as `tproxy flows` shows them
    #[arg(value_name = "N")]
    ids: Vec<FlowId>,
    #[command(flatten)]
    instance: InstanceArgs,
    #[command(flatten)]
    filter: Filter,
    /// All flows
    #[arg(long)]
    all: bool,
}

/// `tproxy reload`
#[derive(Debug, clap::Args)]
pub struct Reload {
    #[command(flatten)]
    instance: InstanceArgs,
    /// Go back to the rules before unless `tproxy confirm` comes within this time, such as 30s
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    confirm: Option<Duration>,
}

/// `tproxy confirm`
#[derive(Debug, clap::Args)]
pub struct Confirm {
    #[command(flatten)]
    instance: InstanceArgs,
}

/// `tproxy drain`
#[derive(Debug, clap::Args)]
pub struct Drain {
    #[command(flatten)]
    instance: InstanceArgs,
}

/// `tproxy metrics`
#[derive(Debug, clap::Args)]
pub struct Metrics {
    #[command(flatten)]
    instance: InstanceArgs,
    /// Print which metrics there are instead, as a page in Markdown
    #[arg(long)]
    list: bool,
}

impl AskArgs {
    /// How the instance is.
    ///
    /// # Errors
    /// There is none, or it does not answer.
    pub async fn status(self) -> anyhow::Result<()> {
        let client = Client::new(self.instance.name);
        if self.json {
            return say(&client.text(Method::GET, "/status").await?);
        }
        say(&tables::status(&client.ask::<Status>(Method::GET, "/status").await?))
    }

    /// The rules with their hits.
    ///
    /// # Errors
    /// As above.
    pub async fn rules(self) -> anyhow::Result<()> {
        let client = Client::new(self.instance.name);
        if self.json {
            return say(&client.text(Method::GET, "/rules").await?);
        }
        say(&tables::rules(&client.ask::<Vec<ShownRule>>(Method::GET, "/rules").await?))
    }

    /// The servers of upstreams.
    ///
    /// # Errors
    /// As above.
    pub async fn upstreams(self) -> anyhow::Result<()> {
        let client = Client::new(self.instance.name);
        if self.json {
            return say(&client.text(Method::GET, "/upstreams").await?);
        }
        say(&tables::upstreams(&client.ask::<Vec<ShownUpstream>>(Method::GET, "/upstreams").await?))
    }
}

impl FlowsArgs {
    /// The live flows.
    ///
    /// # Errors
    /// As above.
    pub async fn show(self) -> anyhow::Result<()> {
        let client = Client::new(self.instance.name);
        if self.follow {
            let json = self.json;
            return client
                .lines(&with_query("/flows/follow", &self.filter)?, |line| {
                    if json {
                        return say(&format!("{line}\n"));
                    }
                    let event: FlowEvent = serde_json::from_str(line)?;
                    say(&format!("{}\n", tables::event(&event)))
                })
                .await;
        }
        let path = with_query("/flows", &self.filter)?;
        if self.json {
            return say(&client.text(Method::GET, &path).await?);
        }
        say(&tables::flows(&client.ask::<Vec<ShownFlow>>(Method::GET, &path).await?))
    }
}

impl Close {
    /// Has flows end.
    ///
    /// # Errors
    /// As above, or none was meant.
    pub async fn close(self) -> anyhow::Result<()> {
        let ways = [!self.ids.is_empty(), !self.filter.is_empty(), self.all];
        ensure!(
            ways.iter().filter(|way| **way).count() == 1,
            "say which flows: by their numbers, by flags such as --client 10.0.0.5, or --all"
        );
        let client = Client::new(self.instance.name);
        let paths = if self.all {
            vec!["/close/all".to_owned()]
        } else if self.ids.is_empty() {
            vec![with_query("/close", &self.filter)?]
        } else {
            let one = |id: &FlowId| with_query("/close", &Filter { id: Some(*id), ..Filter::default() });
            self.ids.iter().map(one).collect::<anyhow::Result<_>>()?
        };
        let mut closed = 0;
        for path in paths {
            closed += client.ask::<Closed>(Method::POST, &path).await?.closed;
        }
        ensure!(closed > 0, "there is no such flow; `tproxy flows` shows those that are live");
        say(&format!("closed {closed} {}\n", if closed == 1 { "flow" } else { "flows" }))
    }
}

impl Reload {
    /// Has the instance read its file again.
    ///
    /// # Errors
    /// As above, or something is wrong with the file.
    pub async fn reload(self) -> anyhow::Result<()> {
        let query = self
            .confirm
            .map(|time| format!("?confirm={}", humantime::format_duration(time)).replace(' ', ""));
        let path = format!("/reload{}", query.unwrap_or_default());
        let reloaded: Reloaded = Client::new(self.instance.name).ask(Method::POST, &path).await?;
        let within = reloaded.confirm_within_seconds;
        let rest =
            within.map(|time| format!("; rolled back unless `tproxy confirm` comes within {}", age(time)));
        say(&format!("{}{}\n", reloaded.changes, rest.unwrap_or_default()))
    }
}

impl Confirm {
    /// Keeps what a reload brought.
    ///
    /// # Errors
    /// As above, or nothing waits to be confirmed.
    pub async fn confirm(self) -> anyhow::Result<()> {
        let _: Confirmed = Client::new(self.instance.name).ask(Method::POST, "/confirm").await?;
        say("confirmed: the new rules stay\n")
    }
}

impl Drain {
    /// Has the instance take no new flow, and stop when the live ones have ended.
    ///
    /// # Errors
    /// As above.
    pub async fn drain(self) -> anyhow::Result<()> {
        let client = Client::new(self.instance.name);
        let ShownDraining { live, limit_seconds } = client.ask(Method::POST, "/drain").await?;
        say(&format!("{} takes no new flow; {live} live have {}\n", client.name(), age(limit_seconds)))
    }
}

impl Metrics {
    /// What Prometheus would be told.
    ///
    /// # Errors
    /// As above.
    pub async fn show(self) -> anyhow::Result<()> {
        if self.list {
            return say(&documentation());
        }
        say(&Client::new(self.instance.name).text(Method::GET, "/metrics").await?)
    }
}

pub(crate) fn with_query(path: &str, filter: &Filter) -> anyhow::Result<String> {
    if filter.is_empty() {
        return Ok(path.to_owned());
    }
    Ok(format!("{path}?{}", serde_urlencoded::to_string(filter)?))
}

/// Prints an answer. That nobody reads on is no mistake of ours.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(|error| anyhow!("cannot write to standard output: {error}")),
    }
}
