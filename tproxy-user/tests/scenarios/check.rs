//! `tproxy check`, with and without an instance that runs.

use crate::{
    reload::{File, answering, told},
    support::*,
};

/// `tproxy check` of a file, from the directory that it is in.
#[track_caller]
fn check(world: &World, file: &File, flags: &str) -> Ended {
    let (directory, binary) = (file.directory().display(), binary().display());
    let line = format!("env --chdir={directory} {binary} check tproxy.toml {flags}");
    let mut proc = world.net.gateway.start(&line).unwrap();
    let status = proc.wait(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    Ended { status, said: proc.lines().join("\n") }
}

#[test]
fn what_a_reload_would_change_is_said_and_is_what_it_then_changes() {
    let world = World::new();
    let file =
        File::new(&(answering("one", 80, "one") + &answering("two", 81, "2") + &answering("three", 82, "3")));
    let tproxy = world.tproxy(&file.flags());
    let same = check(&world, &file, "");
    assert!(same.status.success() && same.said.contains("nothing changed"), "{}", same.said);
    file.replace(
        &("timeouts = { idle = \"7s\" }\n".to_owned()
            + &answering("three", 82, "3")
            + &answering("one", 80, "other")
            + &answering("four", 83, "4")),
    );
    let Ended { status, said } = check(&world, &file, "");
    let changes = "rules added=1 (four); rules removed=1 (two); rules changed=1 (one); rules reordered; changed: timeouts";
    assert!(status.success() && said.contains("nothing is wrong") && said.contains(changes), "{said}");
    assert_eq!(told(&world.net.client, Family::V4.public(), 80).unwrap(), "one", "{}", *tproxy);
    let reloaded = tproxy_output(&world.net.gateway, "reload");
    assert!(reloaded.status.success() && reloaded.said.contains(changes), "{}", reloaded.said);
    assert_eq!(told(&world.net.client, Family::V4.public(), 80).unwrap(), "other", "{}", *tproxy);
}

#[test]
fn what_a_reload_would_refuse_is_said_and_the_rules_stay() {
    let world = World::new();
    add_port(&world.net.gateway);
    let good = answering("one", 80, "one");
    let file = File::new(&good);
    let tproxy = world.tproxy(&file.flags());
    for (text, says) in [
        (
            format!("table = 77\nworkers = 7\n{good}"),
            "refused: table, workers cannot change while tproxy runs: restart it",
        ),
        (good.replace("\"lan\"", "\"gw-port\""), "refused: rule 'one': 'gw-port' is a port of 'br0'"),
    ] {
        file.replace(&text);
        let Ended { status, said } = check(&world, &file, "");
        assert!(status.code() == Some(1) && said.contains(says), "{said}");
        let reloaded = tproxy_output(&world.net.gateway, "reload");
        let (_, reason) = says.split_once(": ").unwrap();
        assert!(reloaded.status.code() == Some(1) && reloaded.said.contains(reason), "{}", reloaded.said);
    }
    file.replace("rules = 7");
    let wrong = check(&world, &file, "");
    assert!(wrong.status.code() == Some(2) && wrong.said.contains("tproxy.toml:1:9"), "{}", wrong.said);
    assert_eq!(told(&world.net.client, Family::V4.public(), 80).unwrap(), "one", "{}", *tproxy);
}

#[test]
fn a_file_is_compared_with_the_instance_that_is_meant_or_with_none() {
    let world = World::new();
    let name = format!("{}-other", world.net.gateway.name());
    let file = File::new(&answering("one", 80, "one"));
    let _tproxy = world.tproxy(&format!("{} --name {name}", "--scope inbound --action pass"));
    let alone = check(&world, &file, "");
    assert!(alone.status.success() && alone.said.contains("nothing is wrong"), "{}", alone.said);
    let says =
        format!("not compared with what runs: no tproxy called '{}' answers", world.net.gateway.name());
    assert!(alone.said.contains(&says), "{}", alone.said);
    for (text, flags) in [
        (answering("one", 80, "one"), format!("--name {name}")),
        (format!("name = \"{name}\"\n") + &answering("one", 80, "one"), String::new()),
    ] {
        file.replace(&text);
        let compared = check(&world, &file, &flags);
        // It has a name and the file has none, or the same one and other rules.
        assert!(compared.said.contains(&format!("a reload by '{name}'")), "{}", compared.said);
    }
}
