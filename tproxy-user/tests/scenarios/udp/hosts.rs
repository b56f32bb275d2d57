//! Scopes `inbound` and `outbound`: the host's own services and clients.

use std::{process::Command, time::Duration};

use super::*;

const PORT: u16 = 7;

#[test]
fn inbound_hands_datagrams_to_the_application_and_answers_from_its_address() {
    for world in [World::new(), World::l3()] {
        for family in Family::ALL {
            reflect(&world.net.gateway, (family.lan(), PORT));
        }
        for (engine, source) in ENGINES.iter().flat_map(|engine| [(engine, "host"), (engine, "client")]) {
            let args = "--scope inbound --proto udp --port 7 --action direct";
            let tproxy = world.tproxy(&format!("{args} --source {source} --steer {engine}"));
            for family in Family::ALL {
                let client = datagrams(&world.net.client, (family.client(), 0));
                let seen = if source == "client" { family.client() } else { family.lan() };
                for text in ["first", "second"] {
                    let answer = ask(&client, (family.lan(), PORT).into(), text, &*tproxy);
                    assert!(answer.contains(&seen.to_string()), "{engine} {source}: {answer}\n{}", *tproxy);
                    assert!(answer.ends_with(text), "{answer}");
                }
                let own = client.local_addr().unwrap().to_string();
                tproxy.wait_line(&[&own, "direct"], PATIENCE).unwrap_or_else(|error| panic!("{error}"));
            }
        }
    }
}

#[test]
fn inbound_does_the_other_actions() {
    let world = World::new();
    for family in Family::ALL {
        reflect(&world.net.gateway, (family.lan(), PORT));
        reflect(&world.net.gateway, (family.lan(), 81));
        reflect(&world.net.server, (family.server(), 99));
    }
    for engine in ENGINES {
        let inbound = |action: &str| {
            world.tproxy(&format!("--scope inbound --proto udp --port 81 --action {action} --steer {engine}"))
        };
        let client = |family: Family| datagrams(&world.net.client, (family.client(), 0));
        let respond = inbound("respond=hello");
        for family in Family::ALL {
            assert_eq!(ask(&client(family), (family.lan(), 81).into(), "x", &*respond), "hello", "{engine}");
        }
        drop(respond);
        let upstream = inbound(&format!("upstream={}:99", Family::V4.server()));
        for family in Family::ALL {
            let answer = ask(&client(family), (family.lan(), 81).into(), "x", &*upstream);
            assert!(answer.starts_with(&Family::V4.wan().to_string()), "{answer}\n{}", *upstream);
        }
        drop(upstream);
        let reject = inbound("reject");
        for family in Family::ALL {
            let client = client(family);
            client.connect((family.lan(), 81)).unwrap();
            client.send(b"x").unwrap();
            let refused = client.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{engine}\n{}", *reject);
        }
        drop(reject);
        let silent = inbound("drop");
        for family in Family::ALL {
            let client = client(family);
            client.send_to(b"x", (family.lan(), 81)).unwrap();
            ask(&client, (family.lan(), PORT).into(), "later", &*silent);
            assert_nothing(&client, &*silent);
        }
    }
}

#[test]
fn outbound_takes_what_the_hosts_own_processes_send() {
    for world in [World::new(), World::l3()] {
        reflecting(&world, PORT);
        // The one with the L3 device.
        let host = &world.net.client;
        for engine in ENGINES {
            let everything =
                format!("--scope outbound --proto udp --to 0.0.0.0/0 --to ::/0 --steer {engine}");
            let direct = tproxy_in(host, &format!("{everything} --action direct"));
            for family in Family::ALL {
                let client = datagrams(host, (family.client(), 0));
                for address in [family.server(), family.public()] {
                    let to = SocketAddr::new(address, PORT);
                    for text in ["first", "second"] {
                        let answer = ask(&client, to, text, &*direct);
                        assert!(answer.starts_with(&seen_as(family.client())), "{engine}: {answer}");
                        let own = format!("{} ", client.local_addr().unwrap());
                        assert!(!answer.starts_with(&own), "not relayed: {answer}\n{}", *direct);
                    }
                    tproxy_line(&direct, &[&client.local_addr().unwrap().to_string(), &to.to_string()]);
                }
            }
            drop(direct);
            let respond = tproxy_in(host, &format!("{everything} --action respond=hello"));
            for family in Family::ALL {
                let client = datagrams(host, (family.client(), 0));
                assert_eq!(ask(&client, (family.public(), 1234).into(), "x", &*respond), "hello", "{engine}");
            }
            drop(respond);
            let reject = tproxy_in(host, &format!("{everything} --port 81 --action reject"));
            for family in Family::ALL {
                let client = datagrams(host, (family.client(), 0));
                client.connect((family.server(), 81)).unwrap();
                client.send(b"x").unwrap();
                let refused = client.recv(&mut [0; 8]).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{engine}\n{}", *reject);
            }
        }
    }
}

#[track_caller]
fn tproxy_line(tproxy: &Tproxy, words: &[&str]) {
    tproxy.wait_line(words, PATIENCE).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn outbound_selects_by_the_senders_user() {
    let world = World::new();
    reflecting(&world, PORT);
    for engine in ENGINES {
        let args = "--scope outbound --proto udp --uid 4711 --action respond=taken";
        let tproxy = world.tproxy(&format!("{args} --steer {engine}"));
        for family in Family::ALL {
            for (uid, taken) in [(4711, true), (4712, false)] {
                let to = SocketAddr::new(family.server(), PORT);
                let script = format!("printf x | socat -t 5 - UDP:{to}");
                tproxy_netns::require_tool("socat").unwrap_or_else(|error| panic!("{error}"));
                let mut command: Command = world.net.gateway.command("timeout");
                command.args(["5", "setpriv", "--reuid", &uid.to_string(), "--clear-groups", "sh", "-c"]);
                let output = command.arg(format!("{script} | head -c 5")).output().unwrap();
                let answer = String::from_utf8_lossy(&output.stdout);
                assert_eq!(answer == "taken", taken, "{engine} {family:?} {uid}: {answer}\n{}", *tproxy);
                assert!(!answer.is_empty(), "{engine} {family:?} {uid}: {output:?}\n{}", *tproxy);
            }
        }
    }
}

#[test]
fn the_classic_recipe_answers_on_lo_without_any_route() {
    for engine in ENGINES {
        let alone = Namespace::new("alone").unwrap();
        let args = "--scope outbound --proto udp --interface lo --to 8.8.8.8 --action respond=hello";
        let tproxy = tproxy_in(&alone, &format!("{args} --steer {engine}"));
        let client = datagrams(&alone, SocketAddr::from(([0, 0, 0, 0], 0)));
        socket2::SockRef::from(&client).bind_device(Some(b"lo")).unwrap();
        for _ in 0..3 {
            assert_eq!(ask(&client, (Family::V4.public(), 8080).into(), "hi", &*tproxy), "hello", "{engine}");
        }
    }
}

/// What it remembers of an ended flow it forgets, and a new instance starts afresh.
#[test]
fn flows_go_on_when_the_instance_ends_and_the_next_one_takes_them_again() {
    let world = World::new();
    reflecting(&world, PORT);
    for engine in ENGINES {
        let clients = Family::ALL.map(|family| datagrams(&world.net.client, (family.client(), 0)));
        for _ in 0..2 {
            let tproxy = world.tproxy(&format!("{FORWARDED} --action direct --steer {engine}"));
            for (family, client) in Family::ALL.into_iter().zip(&clients) {
                let answer = ask(client, (family.public(), PORT).into(), "taken", &*tproxy);
                assert!(answer.contains(&family.wan().to_string()), "{engine}: {answer}\n{}", *tproxy);
            }
            drop(tproxy);
            for (family, client) in Family::ALL.into_iter().zip(&clients) {
                let own = client.local_addr().unwrap();
                client.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
                let answer = ask(client, (family.public(), PORT).into(), "passed", &"after the end");
                assert_eq!(answer, format!("{own} said passed"), "{engine}");
            }
        }
    }
}
