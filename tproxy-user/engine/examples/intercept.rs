//! Takes TCP connections to port 80 of any address, and says where they were going: `intercept INTERFACE`, as root.
#![expect(clippy::print_stdout, reason = "printing is what it does")]

use std::error::Error;

use tokio::{io::AsyncWriteExt as _, signal::ctrl_c};
use tproxy::{
    config::{Action, Config, Protocols, Reach, Rule, Scope, Selector},
    instance::Instance,
    intercept::{Intercepted, connections},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let interface = std::env::args().nth(1).ok_or("say which interface the clients are behind")?;
    let (taker, mut connections) = connections();
    let reach = Reach { protocols: Protocols::Tcp, interfaces: vec![interface], ..Scope::Forwarded.into() };
    let selector = Selector { ports: vec![80..=80].into(), ..reach.into() };
    let rule = Rule::new("mine", selector, Action::HandOver(taker));
    let instance = Instance::start(Config::new(vec![rule]), false)?;
    println!("ready");
    loop {
        tokio::select! {
            taken = connections.next() => {
                let Some(mut taken) = taken? else { break };
                tokio::spawn(async move {
                    let Intercepted { client, destination, rule, .. } = &taken;
                    let answer = format!("{rule}: {client} wanted to go to {destination}\n");
                    taken.stream.write_all(answer.as_bytes()).await
                });
            }
            interrupted = ctrl_c() => break interrupted?,
        }
    }
    Ok(instance.stop()?)
}
