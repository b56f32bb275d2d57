use std::{io::Write as _, process::Stdio};

use super::*;

#[test]
fn top_shows_the_instance_in_a_terminal_closes_a_flow_and_gives_the_terminal_back() {
    let world = World::new();
    serve(&world.net.server, (Family::V4.server(), 7), echo);
    let tproxy = world.tproxy(&format!("{FORWARDED} --action direct"));
    let stream = connect(&world.net.client, (Family::V4.server(), 7)).unwrap();
    assert_echo(&stream, "x", &*tproxy);
    let mut child = world
        .net
        .gateway
        .command("script")
        // A terminal whose input is a pipe has no size of its own.
        .args(["-qec", &format!("stty rows 40 cols 140; {} top", binary().display()), "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = child.stdin.take().unwrap();
    // Select the flow, close it, confirm.
    keys.write_all(b"jxy").unwrap();
    tproxy.wait_line(&["closed", "end=closed"], PATIENCE).unwrap();
    keys.write_all(b"q").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    for shown in ["\x1b[?1049h", world.net.gateway.name(), "original destination", "\x1b[?1049l"] {
        assert!(said.contains(shown), "{shown:?}: {said:?}");
    }
}

#[test]
fn without_a_terminal_top_says_what_to_use_instead() {
    let world = World::new();
    let _tproxy = world.tproxy(&format!("{FORWARDED} --action pass"));
    let refused = tproxy_output(&world.net.gateway, "top");
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.said.contains("flows --follow"), "{}", refused.said);
}
