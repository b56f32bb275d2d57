//! Upstreams that URLs name: real proxies and load balancers, which stand for the original destination.

use std::{io::ErrorKind, net::SocketAddr, time::Instant};

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
        std::fs::write(&path, text).unwrap();
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
    let _proxies = Proxies::start(&world.net.server);
    let file = File::new(&rules());
    let tproxy = world.tproxy(&file.flags());
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
