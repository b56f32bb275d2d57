//! The control socket, its subcommands, and metrics.

mod asking;
mod limits;
mod metrics;
mod reloading;
mod top;

use std::{io, process::Output};

use crate::support::*;

/// The path of the gateway's control socket.
fn socket(world: &World) -> String {
    format!("/run/tproxy/{}.sock", world.net.gateway.name())
}

/// `tproxy ARGS` about the gateway's instance: what it prints, when it succeeds.
#[track_caller]
fn ask(world: &World, args: &str) -> String {
    let Ended { status, said } = tproxy_output(&world.net.gateway, args);
    assert!(status.success(), "tproxy {args}: {said}");
    said
}

/// The same as JSON.
#[track_caller]
fn ask_json(world: &World, args: &str) -> serde_json::Value {
    let said = ask(world, args);
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("tproxy {args}: {error}: {said}"))
}

/// `curl --unix-socket` on the gateway.
fn curl_socket(world: &World, prefix: &[&str], flags: &[&str], path: &str) -> io::Result<Output> {
    let mut words = prefix.to_vec();
    let (socket, url) = (socket(world), format!("http://tproxy{path}"));
    words.extend(["curl", "-sS", "--max-time", "10", "--unix-socket", &socket]);
    words.extend(flags);
    words.push(&url);
    world.net.gateway.command(words[0]).args(&words[1..]).output()
}

/// What `curl` prints of it.
#[track_caller]
fn curled(world: &World, flags: &[&str], path: &str) -> String {
    let output = curl_socket(world, &[], flags, path).unwrap();
    assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
