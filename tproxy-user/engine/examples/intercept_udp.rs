//! Takes UDP flows to port 7 of any address, and answers each datagram with where it was going: `intercept_udp INTERFACE`, as
//! root.
#![expect(clippy::print_stdout, reason = "printing is what it does")]

use std::error::Error;

use tokio::signal::ctrl_c;
use tproxy::{
    config::{Action, Config, Protocols, Reach, Rule, Scope, Selector},
    instance::Instance,
    intercept::{UdpSession, sessions},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let interface = std::env::args().nth(1).ok_or("say which interface the clients are behind")?;
    let (taker, mut sessions) = sessions();
    let reach = Reach { protocols: Protocols::Udp, interfaces: vec![interface], ..Scope::Forwarded.into() };
    let selector = Selector { ports: vec![7..=7].into(), ..reach.into() };
    let rule = Rule::new("mine", selector, Action::HandOver(taker));
    let instance = Instance::start(Config::new(vec![rule]), false)?;
    println!("ready");
    loop {
        tokio::select! {
            session = sessions.next() => {
                let Some(session) = session else { break };
                tokio::spawn(serve(session));
            }
            interrupted = ctrl_c() => break interrupted?,
        }
    }
    Ok(instance.stop()?)
}

/// Until the client says that it is done, or nothing for long enough.
async fn serve(mut session: UdpSession) {
    while let Some(datagram) = session.recv().await {
        let UdpSession { client, destination, rule, .. } = &session;
        let said = String::from_utf8_lossy(&datagram);
        let answer = format!("{rule}: {client} said {said} to {destination}");
        if session.send(answer.as_bytes()).await.is_err() || *datagram == *b"done" {
            break;
        }
    }
    println!("{} is done", session.client);
}
