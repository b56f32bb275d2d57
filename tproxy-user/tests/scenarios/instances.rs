//! Several instances on one machine.

use crate::{
    clean::{Snapshot, assert_cleanup},
    support::*,
    udp,
};

const OTHER: &str = "--mark 0x100000/0x300000 --table 4711 --priority 4711";

#[test]
fn two_with_different_marks_and_tables_coexist() {
    for engine in ENGINES {
        let world = World::new();
        let before = Snapshot::take(&world.net.gateway);
        let one = world.tproxy(&format!("{FORWARDED} --port 80 --action respond=one --steer {engine}"));
        let two =
            world.tproxy(&format!("{FORWARDED} --port 81 --action respond=two --steer {engine} {OTHER}"));
        for family in Family::ALL {
            world.curl(family.public(), 80).assert_body("one", &*one);
            world.curl(family.public(), 81).assert_body("two", &*two);
        }
        // The end of the first is not the end of the second.
        drop(one);
        for family in Family::ALL {
            let got = world.curl(family.public(), 80);
            got.assert_nginx((family.public(), 80).into(), family.client(), &*two);
            world.curl(family.public(), 81).assert_body("two", &*two);
        }
        drop(two);
        before.assert_same(&world.net.gateway, &engine);
    }
}

#[test]
fn what_one_relays_the_other_leaves_alone_on_another_interface() {
    let world = World::new();
    let one = world.tproxy(&format!("{FORWARDED} --action direct --source client"));
    let two = world.tproxy(&format!("--scope forwarded --interface wan --action respond=two {OTHER}"));
    for family in Family::ALL {
        let got = world.curl(family.public(), 80);
        got.assert_nginx((family.public(), 80).into(), family.client(), &format!("{}\n{}", *one, *two));
        one.wait_line(&[&family.client().to_string(), "direct"], PATIENCE).unwrap();
    }
}

#[test]
fn what_one_sends_the_next_leaves_alone_and_takes_over_when_it_ends() {
    let outbound = "--scope outbound --to 0.0.0.0/0 --to ::/0 --action direct --nat per-destination";
    for engine in ENGINES {
        let world = World::new();
        let gateway = &world.net.gateway;
        let asks = |family: Family| {
            curl(gateway, "", family.server(), 80).assert_nginx(
                (family.server(), 80).into(),
                family.wan(),
                &engine,
            );
            let server = datagrams(&world.net.server, (family.server(), 4077));
            let client = datagrams(gateway, (family.wan(), 0));
            client.send_to(b"ask", (family.server(), 4077)).unwrap();
            let mut buffer = [0; 16];
            let (_, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(b"answer", from).unwrap();
            let (length, _) = client.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"answer");
        };
        let one = world.tproxy(&format!("{outbound} --steer {engine}"));
        let two = world.tproxy(&format!("{outbound} --steer {engine} {OTHER}"));
        for family in Family::ALL {
            asks(family);
        }
        let taken = |lines: Vec<String>| lines.iter().filter(|line| line.contains(" accepted ")).count();
        let last = format!("dst=[{}]:4077", Family::V6.server());
        one.wait_line(&["accepted", &last], PATIENCE).unwrap();
        assert_eq!(taken(one.lines()), 4, "{}", *one);
        assert_eq!(taken(two.lines()), 0, "{}", *two);
        drop(one);
        for family in Family::ALL {
            asks(family);
        }
        two.wait_line(&["accepted", &last], PATIENCE).unwrap();
        assert_eq!(taken(two.lines()), 4, "{}", *two);
    }
}

#[test]
fn two_that_take_the_same_inbound_flows_do_not_take_each_others() {
    for engine in ENGINES {
        for source in ["host", "client"] {
            let world = World::new();
            let inbound = format!("--scope inbound --action direct --source {source} --steer {engine}");
            let mut one = tproxy_in(&world.net.server, &inbound);
            let mut two = tproxy_in(&world.net.server, &format!("{inbound} {OTHER}"));
            udp::reflecting(&world, 4_077);
            for family in Family::ALL {
                let context = format!("{engine} {source}\n{}\n{}", *one, *two);
                let seen = if source == "client" { family.client() } else { family.server() };
                world.curl(family.server(), 80).assert_nginx((family.server(), 80).into(), seen, &context);
                let client = datagrams(&world.net.client, (family.client(), 0));
                let answer = udp::ask(&client, (family.server(), 4_077).into(), "hello", &context);
                assert!(answer.ends_with("said hello"), "{answer}\n{context}");
            }
            let taken = |tproxy: &mut Tproxy| {
                tproxy.signal(rustix::process::Signal::TERM);
                tproxy.wait(PATIENCE).unwrap();
                tproxy.lines().iter().filter(|line| line.contains(" accepted ")).count()
            };
            assert_eq!((taken(&mut one), taken(&mut two)), (4, 0), "{engine} {source}\n{}\n{}", *one, *two);
        }
    }
}

#[test]
fn a_second_with_the_same_mark_or_table_is_refused_and_names_the_first() {
    let world = World::new();
    let first = world.tproxy(&format!("{FORWARDED} --action respond=first"));
    let before = Snapshot::take(&world.net.gateway);
    for flags in ["", "--mark 0x100000/0x300000", "--table 4711 --priority 4711"] {
        let output = tproxy_output(
            &world.net.gateway,
            &format!("run --scope forwarded --interface wan --action pass {flags}"),
        );
        let said = output.said;
        assert!(!output.status.success(), "{flags}: {said}");
        assert_eq!(said.trim().lines().count(), 1, "{flags}: {said}");
        assert!(said.contains(&first.pid().to_string()), "{flags}: {said}");
        before.assert_same(&world.net.gateway, &said);
        world.curl(Family::V4.public(), 80).assert_body("first", &*first);
    }
}

#[test]
fn instances_in_different_namespaces_do_not_see_each_other() {
    let world = World::new();
    // The same mark and table in all three.
    let gateway = world.tproxy(&format!("{FORWARDED} --action direct --source client"));
    let client =
        tproxy_in(&world.net.client, "--scope outbound --to 8.8.8.8 --port 81 --action respond=client");
    let mut server = tproxy_in(&world.net.server, "--scope inbound --port 8080 --action respond=server");
    let assert_all = || {
        for family in Family::ALL {
            world.curl(family.server(), 80).assert_nginx(
                (family.server(), 80).into(),
                family.client(),
                &*gateway,
            );
        }
        world.curl(Family::V4.public(), 81).assert_body("client", &*client);
    };
    assert_all();
    world.curl(Family::V4.server(), 8080).assert_body("server", &*server);
    // A crash and its clean-up in one are nothing to the others.
    server.kill9();
    let before = Snapshot::take(&world.net.gateway);
    assert_cleanup(&world.net.server);
    before.assert_same(&world.net.gateway, &*gateway);
    assert_all();
    let got = world.curl(Family::V4.server(), 8080);
    got.assert_nginx((Family::V4.server(), 8080).into(), Family::V4.client(), &*gateway);
}
