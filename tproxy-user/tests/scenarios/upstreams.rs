//! Upstreams that URLs name: real proxies and load balancers, which stand for the original destination.

use std::{fs, io::ErrorKind, net::SocketAddr, os::unix::fs::PermissionsExt as _, time::Instant};

use crate::{reload::File, support::*};

/// Programs at the server, and files of theirs.
struct Proxies {
    running: Vec<Proc>,
    files: File,
}

impl Proxies {
    const SOCKS5: u16 = 1080;
    const SQUID: u16 = 3128;
    const HAPROXY: u16 = 4081;
    const NGINX: u16 = 4082;

    fn start(namespace: &Namespace) -> Self {
        let mut proxies = Self { running: Vec::new(), files: File::new("") };
        proxies.run(namespace, "microsocks", &format!("-i :: -p {}", Self::SOCKS5), Self::SOCKS5);
        let squid = format!(
            "http_port {}\nacl safe port 443 4\nhttp_access deny CONNECT !safe\nhttp_access allow all\n\
             pid_filename none\naccess_log none\ncache_log /dev/null\ncache deny all\nshutdown_lifetime 0 seconds\n\
             visible_hostname squid\npinger_enable off\n",
            Self::SQUID
        );
        let file = proxies.file("squid.conf", &squid);
        proxies.run(namespace, "squid", &format!("-N -f {file}"), Self::SQUID);
        let haproxy = format!(
            "defaults\n mode http\n timeout client 30s\n timeout server 30s\n timeout connect 30s\n\
             frontend proxied\n bind :::{} v4v6 accept-proxy\n http-request return status 200 content-type text/plain \
             lf-string \"from %[src]:%[src_port] to %[dst]:%[dst_port] flow %[fc_pp_unique_id]\"\n",
            Self::HAPROXY
        );
        let file = proxies.file("haproxy.cfg", &haproxy);
        proxies.run(namespace, "haproxy", &format!("-db -f {file}"), Self::HAPROXY);
        let root = proxies.files.directory().display().to_string();
        let nginx = format!(
            "daemon off; master_process off; pid {root}/pid; error_log stderr notice; events {{}}\nhttp {{\n\
             client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;\n\
             uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi; access_log off;\n\
             server {{ listen {port} proxy_protocol; listen [::]:{port} proxy_protocol; location / {{ return 200\n\
             \"from $proxy_protocol_addr:$proxy_protocol_port to \
             $proxy_protocol_server_addr:$proxy_protocol_server_port\"; }} }} }}\n",
            port = Self::NGINX
        );
        let file = proxies.file("nginx.conf", &nginx);
        proxies.run(namespace, "nginx", &format!("-e stderr -p {root} -c {file}"), Self::NGINX);
        proxies
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.files.directory().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Starts a program, and waits until it listens.
    fn run(&mut self, namespace: &Namespace, tool: &str, args: &str, port: u16) {
        tproxy_netns::require_tool(tool).unwrap_or_else(|error| panic!("{error}"));
        let mut proc = namespace.start(&format!("{tool} {args}")).unwrap_or_else(|error| panic!("{error}"));
        let begun = Instant::now();
        while connect(namespace, (Family::V6.server(), port)).is_err() {
            assert!(begun.elapsed() < PATIENCE, "{tool} does not listen: {:?}", proc.lines());
            // One that has ended says why.
            let ended = proc.wait(std::time::Duration::from_millis(50));
            assert!(ended.is_err(), "{tool} ended: {:?}", proc.lines());
        }
        self.running.push(proc);
    }
}

/// By two servers that ask for a password, of which one dies; and by a name that has no address before one of them.
const GROUPS: &str = r#"
[upstreams.corp]
servers = ["socks5://ONE", "socks5://OTHER"]
pick = "round-robin"
check = { every = "100ms" }
credentials = { file = "corp.secret" }

[upstreams.named]
servers = ["socks5://nobody.invalid:1080", "socks5://ONE"]
credentials = { file = "corp.secret" }

[[rules]]
name = "by turns"
scope = "outbound"
protocol = "tcp"
ports = [80]
action = "upstream=@corp"

[[rules]]
name = "by name"
scope = "outbound"
protocol = "tcp"
ports = [81]
action = "upstream=@named"
timeouts.connect = "4s"
"#;

/// What `tproxy upstreams` says of each server: its state, and how many connections went by it.
fn states(namespace: &Namespace) -> Vec<(String, u64)> {
    let said = tproxy_output(namespace, "upstreams --json").said;
    let upstreams: serde_json::Value =
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    let servers = |upstream: &serde_json::Value| {
        upstream["servers"].as_array().unwrap_or_else(|| panic!("{said}")).clone()
    };
    let servers = upstreams.as_array().unwrap_or_else(|| panic!("{said}")).iter().flat_map(servers);
    let shown = |server: serde_json::Value| {
        let state = server["state"].as_str().unwrap_or_else(|| panic!("{said}")).to_owned();
        (state, server["connected"].as_u64().unwrap_or_else(|| panic!("{said}")))
    };
    servers.map(shown).collect()
}

/// Waits until the servers of the first group are in these states.
#[track_caller]
fn wait_for(namespace: &Namespace, wanted: [&str; 2], context: &dyn std::fmt::Display) {
    let begun = Instant::now();
    loop {
        let states = states(namespace);
        if states.iter().zip(wanted).all(|((state, _), wanted)| state == wanted) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{wanted:?} {states:?}\n{context}");
    }
}

#[test]
fn a_group_goes_on_without_a_server_that_dies_and_with_it_again() {
    let world = World::new();
    let (server, host) = (&world.net.server, &world.net.gateway);
    for family in Family::ALL {
        let public = family.public();
        let start = |port| {
            let mut proxies = Proxies { running: Vec::new(), files: File::new("") };
            proxies.run(server, "microsocks", &format!("-i :: -p {port} -u me -P s3cret"), port);
            proxies.running.remove(0)
        };
        let [(_one, one), (mut dies, other)] =
            [1080, 1081].map(|port| (start(port), SocketAddr::new(family.server(), port).to_string()));
        let file = File::new(&GROUPS.replace("ONE", &one).replace("OTHER", &other));
        let secret = file.directory().join("corp.secret");
        fs::write(&secret, "me:s3cret\n").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = tproxy_output(host, &format!("run {}", file.flags()));
        assert!(!refused.status.success() && refused.said.contains("chmod 600"), "{}", refused.said);
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let tproxy = world.tproxy(&file.flags());
        let answered =
            |port| curl(host, "", public, port).assert_nginx((public, port).into(), public, &*tproxy);
        wait_for(host, ["up", "up"], &*tproxy);
        (0..4).for_each(|_| answered(80));
        let by = || states(host).iter().map(|(_, by)| *by).collect::<Vec<_>>();
        assert_eq!(by()[..2], [2, 2], "{}", *tproxy);
        dies.kill9();
        // No connection fails, whether its death is known already or not.
        (0..4).for_each(|_| answered(80));
        wait_for(host, ["up", "failing"], &*tproxy);
        let _again = start(1081);
        wait_for(host, ["up", "up"], &*tproxy);
        (0..2).for_each(|_| answered(80));
        assert_eq!(by()[1], 3, "{}", *tproxy);
        let flow = format!(
            "tcp {} {} --interface wan",
            SocketAddr::new(family.wan(), 5),
            SocketAddr::new(public, 80)
        );
        let explained = tproxy_output(host, &format!("explain {flow}")).said;
        let towards = format!("to socks5://{one} or socks5://{other}, by table main");
        assert!(explained.contains(&towards), "{towards}\n{explained}");
        // A name that has no address is no end where there is another server.
        answered(81);
        let metrics = tproxy_output(host, "metrics").said;
        let counted = format!("upstream_connected_total{{upstream=\"@corp\",server=\"socks5://{other}\"}} 3");
        assert!(metrics.contains(&counted), "{counted}\n{metrics}");
        let config = tproxy_output(host, &format!("config {}", file.flags())).said;
        assert!(config.contains("corp.secret"), "{config}");
        let shown = [metrics, config, tproxy.to_string(), tproxy_output(host, "upstreams").said];
        assert!(shown.iter().all(|shown| !shown.contains("s3cret")), "{shown:?}");
    }
}

/// What is told of a client that the upstream sees itself, and of one of this host's own addresses.
const MORE: &str = r#"
[[rules]]
name = "seen"
scope = "forwarded"
interfaces = ["lan"]
protocol = "tcp"
to = ["SERVER"]
ports = [80]
action = "upstream=socks5://SERVER:1080"
source = "client"

[[rules]]
name = "front"
scope = "inbound"
protocol = "tcp"
to = ["LAN"]
ports = [4443]
action = "upstream=proxy-v2://SERVER:4081"
"#;

/// A rule for each port and family, in both scopes: its upstream is the proxy's address of that family.
fn rules() -> String {
    let mut text = String::new();
    for (port, scheme, proxy, more) in [
        (80, "socks5", Proxies::SOCKS5, ""),
        (443, "http", Proxies::SQUID, ""),
        (81, "http", Proxies::SQUID, ""),
        (8080, "proxy-v1", Proxies::NGINX, ""),
        (8081, "proxy-v1", Proxies::HAPROXY, ""),
        (8443, "proxy-v2", Proxies::HAPROXY, "accept = 'after-connect'"),
        (4, "socks5", Proxies::SOCKS5, "accept = 'after-connect'"),
        (5, "http", Proxies::SQUID, "accept = 'after-connect'"),
    ] {
        for family in Family::ALL {
            let upstream = SocketAddr::new(family.server(), proxy);
            let to = SocketAddr::new(family.public(), 0).ip();
            let bracketed = upstream.to_string().replace(&format!(":{proxy}"), "");
            if port == 80 {
                let more = MORE.replace("//SERVER", &format!("//{bracketed}"));
                let (server, lan) = (family.server().to_string(), family.lan().to_string());
                text += &more.replace("SERVER", &server).replace("LAN", &lan);
                text = text.replace("name = \"seen\"", &format!("name = \"seen {family:?}\""));
                text = text.replace("name = \"front\"", &format!("name = \"front {family:?}\""));
            }
            for scope in ["scope = 'forwarded'\ninterfaces = ['lan']", "scope = 'outbound'"] {
                text += &format!(
                    "[[rules]]\n{scope}\nprotocol = 'tcp'\nto = ['{to}']\nports = [{port}]\n\
                     action = 'upstream={scheme}://{upstream}'\n{more}\n"
                );
            }
        }
    }
    text
}

#[test]
fn real_proxies_stand_for_the_original_destination() {
    let world = World::new();
    let proxies = Proxies::start(&world.net.server);
    let file = File::new(&rules());
    let tproxy = world.tproxy(&file.flags());
    for family in Family::ALL {
        let (server, lan, client) = (family.server(), family.lan(), family.client());
        curl(&world.net.client, "", server, 80).assert_nginx((server, 80).into(), server, &*tproxy);
        let (client_seen, connected) = (client.to_string(), format!("connected to {}:80", server));
        proxies.running[0].wait_line(&[&client_seen, &connected], PATIENCE).unwrap();
        let got = curl(&world.net.client, "", lan, 4443).body;
        let told = got.starts_with(&format!("from {client}:")) && got.contains(&format!(" to {lan}:4443 "));
        assert!(told, "{got}\n{}", *tproxy);
    }
    for client in [&world.net.client, &world.net.gateway] {
        for family in Family::ALL {
            let own = if std::ptr::eq(client, &world.net.client) { family.client() } else { family.wan() };
            let public = family.public();
            let context = format!("{own}\n{}", *tproxy);
            // The server's own programs connect to it from its own address.
            for port in [80, 443] {
                curl(client, "", public, port).assert_nginx((public, port).into(), public, &context);
            }
            let got = curl(client, "", public, 8080).body;
            let told = format!("from {own}:");
            assert!(
                got.starts_with(&told) && got.ends_with(&format!(" to {public}:8080")),
                "{got}\n{context}"
            );
            for port in [8081, 8443] {
                let got = curl(client, "", public, port).body;
                let flow = got
                    .split(&format!(" to {public}:{port} flow "))
                    .nth(1)
                    .unwrap_or_else(|| panic!("{got}\n{context}"));
                assert!(got.starts_with(&told), "{got}\n{context}");
                let has_number = flow.trim().parse::<u64>().is_ok();
                assert_eq!(has_number, port == 8443, "{got}\n{context}");
            }
            // What the proxy refuses, and what refuses the proxy.
            let refused = curl(client, "", public, 81);
            assert_ne!(refused.code, Some(0), "{refused:?}\n{context}");
            let line = [
                &format!("{}:81", seen_as(public).trim_end_matches(':')),
                "upstream_denied",
                "403",
                "port 81",
            ];
            tproxy.wait_line(&line.map(|word: &str| word), PATIENCE).unwrap();
            for (port, end) in [(4, "connect_refused"), (5, "upstream_denied")] {
                let to = SocketAddr::new(public, port);
                assert_eq!(
                    connect(client, to).unwrap_err().kind(),
                    ErrorKind::ConnectionRefused,
                    "{context}"
                );
                tproxy.wait_line(&[&to.to_string(), end], PATIENCE).unwrap();
            }
        }
    }
}
