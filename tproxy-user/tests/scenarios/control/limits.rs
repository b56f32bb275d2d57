use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::Path,
    process::Command,
};

use rustix::process::Signal;

use super::*;
use crate::clean::assert_cleanup;

const RULE: &str = "--scope forwarded --interface lan --action pass";

#[test]
fn another_user_is_refused_even_where_the_file_lets_them() {
    let world = World::new();
    let _tproxy = world.tproxy(RULE);
    let path = socket(&world);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let kept_out = curl_socket(&world, &nobody, &[], "/status").unwrap();
    assert_eq!(kept_out.status.code(), Some(7), "cannot connect: {kept_out:?}");
    // The directory is everybody's in this mount namespace only; the socket is given away for good.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let script = format!(
        "mkdir -p /tmp/tproxy-seen && mount --bind /run/tproxy /tmp/tproxy-seen && mount -t tmpfs -o mode=755 none /run && \
         mkdir /run/tproxy && touch {path} && mount --bind /tmp/tproxy-seen/{name}.sock {path} && \
         exec {} curl -sS --max-time 10 --unix-socket {path} http://tproxy/status",
        nobody.join(" "),
        name = world.net.gateway.name(),
    );
    let refused = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stdout);
    assert!(said.contains("only root"), "{said} {}", String::from_utf8_lossy(&refused.stderr));
}

#[test]
fn the_socket_goes_with_the_instance_and_what_a_crash_leaves_is_replaced() {
    let world = World::new();
    let mut tproxy = world.tproxy(RULE);
    let path = socket(&world);
    tproxy.kill9();
    let gone = tproxy_output(&world.net.gateway, "status");
    assert!(!gone.status.success() && gone.said.contains(&path), "{}", gone.said);
    let mut successor = world.tproxy(RULE);
    assert_eq!(ask_json(&world, "status --json")["pid"], successor.pid());
    successor.signal(Signal::TERM);
    successor.wait(PATIENCE).unwrap();
    assert!(!Path::new(&path).exists());
    world.tproxy(RULE).kill9();
    assert_cleanup(&world.net.gateway);
    assert!(!Path::new(&path).exists());
}

#[test]
fn names_tell_instances_apart_and_a_living_one_keeps_its_own() {
    let world = World::new();
    let name = world.net.gateway.name();
    let one = world.tproxy(&format!("{RULE} --name {name}-one"));
    let other = "--mark 0x100000/0x300000 --table 4711";
    let refused = tproxy_output(&world.net.gateway, &format!("run {RULE} {other} --name {name}-one"));
    assert!(!refused.status.success() && refused.said.contains("--name"), "{}", refused.said);
    let two = world.tproxy(&format!("{RULE} {other}"));
    for (name, pid) in [(format!("{name}-one"), one.pid()), (format!("{name}-100000"), two.pid())] {
        assert_eq!(ask_json(&world, &format!("status --json --name {name}"))["pid"], pid, "{name}");
    }
    // Neither has the usual name, and it is not clear who is meant.
    let unclear = tproxy_output(&world.net.gateway, "status");
    assert!(!unclear.status.success(), "{}", unclear.said);
    assert!(
        unclear.said.contains("--name") && unclear.said.contains(&format!("{name}-one")),
        "{}",
        unclear.said
    );
    let nonsense = tproxy_output(&world.net.gateway, "status --name a/b");
    assert_eq!(nonsense.status.code(), Some(2), "{}", nonsense.said);
}

#[test]
fn a_crowd_at_the_socket_is_told_of_in_a_few_lines_and_the_instance_goes_on() {
    let world = World::new();
    let tproxy = world.tproxy(&format!("{FORWARDED} --port 80 --action respond=hello"));
    let crowd: Vec<_> = (0..200).map(|_| UnixStream::connect(socket(&world)).unwrap()).collect();
    tproxy.wait_line(&["more lines like the following are held back"], PATIENCE).unwrap();
    world.curl(Family::V4.public(), 80).assert_body("hello", &*tproxy);
    drop(crowd);
    let told = tproxy.lines().iter().filter(|line| line.contains("too many connections")).count();
    assert_eq!(told, 10, "{}", *tproxy);
}
