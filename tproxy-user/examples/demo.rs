//! `cargo xtask demo`: three network namespaces, `tproxy` on the middle one, curl and dig on the first.
//!
//! Needs root, `ip`, `curl`, `nginx`, `dig` and `dnsmasq`. `TPROXY_BIN` names the binary; by default it is the one next to us.
#![expect(clippy::print_stdout, reason = "printing is what a demo does")]

use std::{
    error::Error,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use tproxy_netns::{Family, Namespace, Nginx, Proc, Topology, Tproxy, require_tool};

type Outcome = Result<(), Box<dyn Error>>;

/// One thing to show: what the gateway runs, what the client asks for, what has to happen.
struct Step {
    title: &'static str,
    /// Arguments of `tproxy run`; none: it does not run.
    tproxy: Option<&'static str>,
    url: &'static str,
    /// What the client's answer starts with.
    answer: &'static str,
}

const STEPS: [Step; 6] = [
    Step {
        title: "Nothing runs on the gateway: the server sees the client.",
        tproxy: None,
        url: "http://8.8.8.8/before",
        answer: "server 8.8.8.8:80 saw 10.1.0.2:",
    },
    Step {
        title: "respond: whatever the address, the gateway answers.",
        tproxy: Some(
            "--scope forwarded --interface lan --to 0.0.0.0/0 --port 80 --action respond=hello-from-tproxy",
        ),
        url: "http://8.8.8.8/respond",
        answer: "hello-from-tproxy",
    },
    Step {
        title: "direct: relayed to the original destination; the server sees the gateway.",
        tproxy: Some("--scope forwarded --interface lan --to 0.0.0.0/0 --port 80 --action direct"),
        url: "http://10.2.0.2/direct",
        answer: "server 10.2.0.2:80 saw 10.2.0.1:",
    },
    Step {
        title: "direct, --source client: relayed too, but the server sees the client's address.",
        tproxy: Some(
            "--scope forwarded --interface lan --to 0.0.0.0/0 --port 80 --action direct --source client",
        ),
        url: "http://8.8.8.8/spoofed",
        answer: "server 8.8.8.8:80 saw 10.1.0.2:",
    },
    Step {
        title: "IPv6, the same way.",
        tproxy: Some("--scope forwarded --interface lan --to ::/0 --port 80 --action direct --source client"),
        url: "http://[2001:4860:4860::8888]/six",
        answer: "server 2001:4860:4860::8888:80 saw fd00:1::2:",
    },
    Step {
        title: "tproxy has stopped: the same curl takes the normal route again.",
        tproxy: None,
        url: "http://8.8.8.8/after",
        answer: "server 8.8.8.8:80 saw 10.1.0.2:",
    },
];

fn main() -> ExitCode {
    interrupts_end_the_step_only();
    match demo() {
        Ok(()) => {
            println!("\nEverything went as it should, and everything is removed.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("\nThe demo failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Outcome {
    require_tool("curl")?;
    let binary = binary()?;
    let net = Topology::three()?;
    let nginx = Nginx::start(&net.server)?;
    let [client, lan, wan, server] =
        [Family::client, Family::lan, Family::wan, Family::server].map(|end| end(Family::V4));
    println!("Three network namespaces on this machine, joined by virtual cables:\n");
    println!("   client            gateway                            server");
    println!("   {client} -------- {lan} (lan)  (wan) {wan} --- {server}, 8.8.8.8\n");
    println!("curl and dig run on the client, tproxy on the gateway, nginx and dnsmasq on the server.");
    println!("nginx answers with one line: which address it was asked on, and whom it saw asking.");
    let (last, steps) = STEPS.split_last().ok_or("nothing to show")?;
    for (number, step) in (1..).zip(steps) {
        println!("\n{number}. {}", step.title);
        show(step, &net, &nginx, &binary)?;
    }
    println!("\n{}. UDP: a name server that is not 8.8.8.8 answers for it.", STEPS.len());
    show_udp(&net, &binary)?;
    println!("\n{}. {}", STEPS.len() + 1, last.title);
    show(last, &net, &nginx, &binary)
}

/// A name server on the server's own address only: nobody answers on port 53 of 8.8.8.8.
fn show_udp(net: &Topology, binary: &Path) -> Outcome {
    const RUN: &str = "--scope forwarded --interface lan --proto udp --port 53 --action upstream=10.2.0.2:53";
    const QUERY: &str = "@8.8.8.8 who.answers.example TXT +noall +answer +stats";
    require_tool("dig")?;
    let _dns = name_server(&net.server, Family::V4.server())?;
    println!("   gateway $ tproxy run {RUN}");
    let tproxy = Tproxy::start(&net.gateway, binary, RUN)?;
    println!("   client  $ dig {QUERY}");
    let said = net.client.run(&format!("dig +tries=1 +time=5 {QUERY}"))?;
    let told = |line: &&str| line.contains("TXT") || line.contains("SERVER");
    said.lines().filter(told).for_each(|line| println!("   client got:  {line}"));
    println!("   tproxy log:  {}", tproxy.wait_line(&["8.8.8.8:53"], Duration::from_secs(5))?.trim());
    if !said.contains("dnsmasq on 10.2.0.2") || !said.contains("SERVER: 8.8.8.8#53") {
        return Err(format!("the client should have got dnsmasq's answer from 8.8.8.8:\n{said}").into());
    }
    Ok(())
}

fn name_server(namespace: &Namespace, address: IpAddr) -> Result<Proc, Box<dyn Error>> {
    require_tool("dnsmasq")?;
    let mut command = namespace.command("dnsmasq");
    command.args(["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"]);
    command.args([&format!("--listen-address={address}"), "--except-interface=lo", "--user=root"]);
    command.arg(format!("--txt-record=who.answers.example,dnsmasq on {address}"));
    let server = Proc::start(command)?;
    server.wait_line(&["started"], Duration::from_secs(5))?;
    Ok(server)
}

fn show(step: &Step, net: &Topology, nginx: &Nginx, binary: &Path) -> Outcome {
    let tproxy = match step.tproxy {
        Some(args) => {
            println!("   gateway $ tproxy run {args}");
            Some(Tproxy::start(&net.gateway, binary, args)?)
        }
        None => None,
    };
    println!("   client  $ curl {}", step.url);
    let answer = net.client.run(&format!("curl -sS --max-time 10 {}", step.url))?;
    let answer = answer.trim();
    println!("   client got:  {answer}");
    if let Some(tproxy) = &tproxy {
        let family = if step.url.contains('[') { Family::V6 } else { Family::V4 };
        let line = tproxy.wait_line(&[&family.client().to_string()], Duration::from_secs(5))?;
        println!("   tproxy log:  {}", line.trim());
    }
    let path = step.url.rsplit('/').next().unwrap_or_default();
    if step.answer.starts_with("server") {
        println!("   server log:  {}", nginx.wait_access(&[path])?);
    } else {
        println!("   server log:  {}", nothing(nginx, path)?);
    }
    if !answer.starts_with(step.answer) {
        return Err(format!("the client should have got '{}…'", step.answer).into());
    }
    Ok(())
}

/// The server must not have been asked.
fn nothing(nginx: &Nginx, path: &str) -> Result<&'static str, String> {
    match nginx.access_log().into_iter().find(|line| line.contains(path)) {
        None => Ok("(nothing: it was not asked)"),
        Some(line) => Err(format!("the server should not have been asked, but logged: {line}")),
    }
}

/// `TPROXY_BIN`, or `tproxy` in the directory above the one that holds the examples.
fn binary() -> Result<PathBuf, Box<dyn Error>> {
    if let Some(path) = std::env::var_os("TPROXY_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let directory = own.ancestors().nth(2).ok_or("no directory above the examples")?;
    Ok(directory.join("tproxy"))
}

/// Ctrl-C reaches the programs we run, whose failure ends the demo; we stay to clean up after it.
fn interrupts_end_the_step_only() {
    thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                println!("interrupted: cleaning up");
            }
        });
    });
}
