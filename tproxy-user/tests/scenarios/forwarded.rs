//! Scope `forwarded`: each action, family, engine and kind of interface.

use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::support::*;

#[test]
fn direct_relays_to_the_original_destination_and_the_server_sees_the_gateway() {
    let world = World::new();
    for engine in ENGINES {
        assert_direct(&world, engine, "host", Family::wan);
    }
}

#[test]
fn with_source_client_the_server_sees_the_client() {
    let world = World::new();
    for engine in ENGINES {
        assert_direct(&world, engine, "client", Family::client);
    }
}

#[test]
fn an_l3_tun_interface_is_as_good_as_an_ethernet_one() {
    let world = World::l3();
    for engine in ENGINES {
        assert_direct(&world, engine, "host", Family::wan);
        assert_direct(&world, engine, "client", Family::client);
    }
}

fn assert_direct(world: &World, engine: &str, source: &str, seen: impl Fn(Family) -> std::net::IpAddr) {
    let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --source {source} --steer {engine}"));
    for family in Family::ALL {
        for destination in [(family.server(), 80).into(), SocketAddr::new(family.public(), 8080)] {
            let got = world.curl(destination.ip(), destination.port());
            got.assert_nginx(destination, seen(family), &*tproxy);
            let client = format!("{}", family.client());
            let words = [client.as_str(), &destination.to_string(), "direct"];
            tproxy.wait_line(&words, PATIENCE).unwrap_or_else(|error| panic!("{engine} {source}: {error}"));
        }
    }
}

#[test]
fn source_client_port_keeps_the_clients_address_and_port() {
    let world = World::new();
    for engine in ENGINES {
        let tproxy =
            world.tproxy(&format!("{FORWARDED} --action direct --source client-port --steer {engine}"));
        for family in Family::ALL {
            let listener = listen(&world.net.server, (family.server(), 0));
            let stream = connect(&world.net.client, listener.local_addr().unwrap()).unwrap();
            let seen = accept(&listener);
            assert_eq!(seen.peer_addr().unwrap(), stream.local_addr().unwrap(), "{engine}\n{}", *tproxy);
            // Intercepted, not passed: the relay is in between.
            tproxy.wait_line(&[&stream.local_addr().unwrap().to_string()], PATIENCE).unwrap();
        }
    }
}

#[test]
fn upstream_sends_every_connection_to_one_server_of_either_family() {
    let world = World::new();
    for (engine, upstream) in ENGINES.iter().flat_map(|engine| Family::ALL.map(|upstream| (engine, upstream)))
    {
        let target = SocketAddr::new(upstream.server(), 8443);
        let tproxy = world.tproxy(&format!("{FORWARDED} --action upstream={target} --steer {engine}"));
        for family in Family::ALL {
            let got = world.curl(family.public(), 80);
            got.assert_nginx(target, upstream.wan(), &*tproxy);
            let original = SocketAddr::new(family.public(), 80).to_string();
            tproxy.wait_line(&[&original, &target.to_string()], PATIENCE).unwrap();
        }
    }
}

#[test]
fn respond_answers_curl_with_a_well_formed_http_response() {
    let world = World::new();
    for engine in ENGINES {
        let tproxy = world.tproxy(&format!("{FORWARDED} --action respond=hello --steer {engine}"));
        for family in Family::ALL {
            let got = curl(&world.net.client, "-i", family.public(), 80);
            let (head, body) =
                got.body.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{got:?}\n{}", *tproxy));
            assert!(head.starts_with("HTTP/1.1 200 "), "{got:?}");
            assert!(head.to_lowercase().contains("content-length:"), "{got:?}");
            assert_eq!((got.code, body.trim_end()), (Some(0), "hello"), "{got:?}");
            // An address behind which nobody is answers too: nothing is sent upstream.
            let nowhere = if family == Family::V4 { "203.0.113.9" } else { "2001:db8::9" };
            world.curl(nowhere.parse().unwrap(), 1234).assert_body("hello", &*tproxy);
        }
        assert_eq!(world.nginx.access_log(), Vec::<String>::new());
    }
}

#[test]
fn respond_answers_a_head_request_and_a_post_as_http_does() {
    let world = World::new();
    let tproxy = world.tproxy(&format!("{FORWARDED} --action respond=hello"));
    let head = curl(&world.net.client, "-I", Family::V4.public(), 80);
    assert_eq!(head.code, Some(0), "{head:?}\n{}", *tproxy);
    assert!(head.body.starts_with("HTTP/1.1 200 ") && !head.body.contains("hello"), "{head:?}");
    let data = format!("-d {}", "x".repeat(100_000));
    let post = curl(&world.net.client, &data, Family::V4.public(), 80);
    post.assert_body("hello", &*tproxy);
}

#[test]
fn respond_answers_anything_else_and_silence_with_the_text_and_a_newline() {
    let world = World::new();
    let tproxy = world.tproxy(&format!("{FORWARDED} --action respond=hello"));
    for (family, request) in Family::ALL.iter().flat_map(|family| [(family, "EHLO there\r\n"), (family, "")])
    {
        let mut stream = connect(&world.net.client, (family.public(), 25)).unwrap();
        let started = Instant::now();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .unwrap_or_else(|error| panic!("{request:?}: {error}\n{}", *tproxy));
        assert_eq!(answer, "hello\n", "{family:?} {request:?}\n{}", *tproxy);
        let took = started.elapsed();
        assert!(!request.is_empty() || took >= Duration::from_millis(900), "{took:?} is not a silence");
    }
}

#[test]
fn reject_refuses_at_once() {
    for (world, engine) in [World::new(), World::l3()].iter().flat_map(|world| ENGINES.map(|e| (world, e))) {
        let tproxy = world.tproxy(&format!("{FORWARDED} --port 81 --action reject --steer {engine}"));
        for family in Family::ALL {
            assert_refused_at_once(&world.net.client, (family.server(), 81), &*tproxy);
            world.curl(family.server(), 80).assert_nginx(
                (family.server(), 80).into(),
                family.client(),
                &*tproxy,
            );
        }
        assert_eq!(retransmitted(&world.net.client), 0, "{engine}");
    }
}

#[test]
fn drop_is_silent_and_the_next_allowed_connection_works() {
    let world = World::new();
    for engine in ENGINES {
        let tproxy = world.tproxy(&format!("{FORWARDED} --port 81 --action drop --steer {engine}"));
        let errors = each_at_once(Family::ALL, |family| {
            connect_within(&world.net.client, (family.server(), 81), Duration::from_millis(1_500))
                .unwrap_err()
        });
        for error in errors {
            // Neither SYN-ACK nor RST nor ICMP, to the first SYN and to its repetition.
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}\n{}", *tproxy);
        }
        for family in Family::ALL {
            world.curl(family.server(), 80).assert_nginx(
                (family.server(), 80).into(),
                family.client(),
                &*tproxy,
            );
        }
        assert_eq!(world.nginx.access_log().iter().filter(|line| line.contains(":81 ")).count(), 0);
    }
}

#[test]
fn pass_leaves_alone() {
    let world = World::new();
    for engine in ENGINES {
        let tproxy = world.tproxy(&format!("{FORWARDED} --action pass --steer {engine}"));
        for family in Family::ALL {
            world.curl(family.server(), 80).assert_nginx(
                (family.server(), 80).into(),
                family.client(),
                &*tproxy,
            );
            let client = format!("{}:", family.client());
            assert!(!tproxy.lines().iter().any(|line| line.contains(&client)), "{}", *tproxy);
        }
    }
}

#[test]
fn only_the_named_interface_is_looked_at() {
    let world = World::new();
    let tproxy =
        world.tproxy("--scope forwarded --interface wan --to 0.0.0.0/0 --to ::/0 --action respond=hello");
    for family in Family::ALL {
        // From the client: through lan, passed. From the server: through wan, taken.
        world.curl(family.server(), 80).assert_nginx((family.server(), 80).into(), family.client(), &*tproxy);
        curl(&world.net.server, "", family.client(), 80).assert_body("hello", &*tproxy);
    }
    drop(tproxy);
    let both = world.tproxy(&format!("{FORWARDED} --interface wan --action respond=hello"));
    for family in Family::ALL {
        world.curl(family.server(), 80).assert_body("hello", &*both);
        curl(&world.net.server, "", family.client(), 80).assert_body("hello", &*both);
    }
}
