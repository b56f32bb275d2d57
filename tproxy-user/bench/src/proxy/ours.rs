//! Our relay: with the datapath, and behind somebody else's steering.

use std::time::Duration;

use anyhow::Context as _;
use tproxy::config::Source;
use tproxy_netns::{Namespace, Proc, Tproxy};

use super::Proxy;
use crate::{
    contender::Way,
    relay::{self, READY},
    steering::{self, Rules},
};

/// Nobody logs connections while it is measured; what says that steering is in place is still heard.
const LOG: &str = "warn,tproxy_cli::run=info";

/// `tproxy run`; with more rules than its flags can say, the same with those put in by `tproxy bench-many`.
pub(super) fn start(
    way: Way,
    source: Source,
    rules: Rules,
    gateway: &Namespace,
    cpus: usize,
) -> anyhow::Result<Proxy> {
    let steer = if way == Way::SkAssign { "sk_assign" } else { "sk_lookup" };
    let command = match rules.fillers() {
        0 => "run".to_owned(),
        fillers => format!("bench-many --fillers {fillers} --prefixes {}", rules.prefixes()),
    };
    let proc = start_process(&format!("{command} {} --steer {steer}", flags(source, rules, cpus)), gateway)?;
    proc.wait_line(&["ready"], Duration::from_secs(30))?;
    Ok(Proxy::Tproxy(Tproxy::from(proc)))
}

/// The workers of `tproxy run` alone, or the relay that they are compared with.
pub(super) fn start_behind(
    way: Way,
    source: Source,
    rules: Rules,
    gateway: &Namespace,
    cpus: usize,
) -> anyhow::Result<Proxy> {
    let command = if way == Way::Singly { "bench-singly" } else { "bench-relay" };
    let proc = start_process(&format!("{command} {}", flags(source, rules, cpus)), gateway)?;
    let line = proc.wait_line(&[READY], Duration::from_secs(10))?;
    let listeners = relay::parse_ready(&line).with_context(|| line.clone())?;
    match way {
        Way::Nft => steering::load_nft(gateway, rules, &listeners)?,
        _ => steering::load_iptables(gateway, rules, &listeners)?,
    }
    Ok(Proxy::Behind(proc))
}

fn flags(source: Source, rules: Rules, cpus: usize) -> String {
    let source = if source == Source::Host { "host" } else { "client" };
    format!(
        "--scope forwarded --interface lan --to 0.0.0.0/0 --port {} --action direct --source {source} \
         --workers {cpus} --drain-timeout 1ms",
        rules.ports()
    )
}

fn start_process(args: &str, gateway: &Namespace) -> anyhow::Result<Proc> {
    let mut command = gateway.command(&std::env::current_exe()?.display().to_string());
    command.args(args.split_whitespace()).env("RUST_LOG", LOG);
    Ok(Proc::start(command)?)
}
