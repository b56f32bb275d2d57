use std::os::unix::{fs::PermissionsExt as _, net::UnixStream};

use crate::host::control_socket::{ControlSocket, InstanceName, remove_dead_in};

use super::*;

/// A directory that does not exist yet, in one that vanishes.
struct SocketPath(PathBuf);

impl SocketPath {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let above = std::env::temp_dir().join(format!("tproxy-sockets-{}-{number}", std::process::id()));
        fs::create_dir(&above).unwrap();
        Self(above.join("tproxy"))
    }

    fn claim(&self, name: &str) -> Result<(ControlSocket, std::os::unix::net::UnixListener), HostError> {
        ControlSocket::claim_in(&self.0, &name.parse().unwrap())
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        fs::remove_dir_all(self.0.parent().unwrap()).unwrap();
    }
}

#[test]
fn a_socket_is_the_owners_alone_and_gone_with_its_guard() {
    let place = SocketPath::new();
    let (socket, _listener) = place.claim("one").unwrap();
    let path = socket.path().to_owned();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&place.0).unwrap().permissions().mode() & 0o777, 0o700);
    UnixStream::connect(&path).unwrap();
    let (other, _others) = place.claim("other").unwrap();
    drop(socket);
    assert!(!path.exists() && other.path().exists());
    drop(other);
    assert!(!place.0.exists(), "nothing is left");
}

#[test]
fn what_the_dead_left_is_replaced_or_removed_and_the_living_are_left_alone() {
    let place = SocketPath::new();
    let (alive, _listener) = place.claim("alive").unwrap();
    let refused = place.claim("alive").unwrap_err().to_string();
    assert!(refused.contains("alive") && refused.contains("--name"), "{refused}");
    for name in ["dead", "forgotten"] {
        let (socket, listener) = place.claim(name).unwrap();
        drop(listener);
        // As by kill -9.
        std::mem::forget(socket);
    }
    let (successor, _listener) = place.claim("dead").unwrap();
    UnixStream::connect(successor.path()).unwrap();
    fs::write(place.0.join("notes.txt"), "of somebody else").unwrap();
    assert_eq!(remove_dead_in(&place.0).unwrap(), [place.0.join("forgotten.sock")]);
    assert!(remove_dead_in(&place.0).unwrap().is_empty());
    assert!(alive.path().exists() && successor.path().exists() && place.0.join("notes.txt").exists());
}

#[test]
fn whoever_comes_finds_the_directory_though_others_leave_it_at_that_moment() {
    let place = SocketPath::new();
    thread::scope(|scope| {
        for name in ["one", "two"] {
            let place = &place;
            scope.spawn(move || {
                for _ in 0..1_000 {
                    drop(place.claim(name).unwrap());
                    // What others of the same directory do, whose journals are in it.
                    cleanup_in(&place.0).unwrap();
                }
            });
        }
    });
    assert!(!place.0.exists(), "nothing is left");
}

#[test]
fn where_it_cannot_be_made_the_path_and_the_remedy_are_named() {
    let place = SocketPath::new();
    // Nothing can be made below a file.
    fs::write(&place.0, "").unwrap();
    let error = place.claim("one").unwrap_err().to_string();
    assert!(error.contains(&*place.0.to_string_lossy()) && error.contains("make it writable"), "{error}");
}

#[test]
fn names_are_short_words() {
    for good in ["default", "gateway-2", "a.b_c", "x"] {
        assert_eq!(good.parse::<InstanceName>().unwrap().to_string(), good);
    }
    let long = "x".repeat(65);
    for bad in ["", ".", "..", ".hidden", "a/b", "a b", "ä", "a\0", &long] {
        assert!(bad.parse::<InstanceName>().is_err(), "{bad}");
    }
}

#[test]
fn a_namespace_without_a_name_gives_the_instance_one() {
    in_namespace(|| {
        let of = |mark| InstanceName::of_this_namespace(mark).to_string();
        let usual = of(Mark::DEFAULT);
        assert!(usual == "default" || usual.starts_with("netns-"), "{usual}");
        assert_eq!(of("0x100000/0x300000".parse().unwrap()), format!("{usual}-100000"));
    });
    let namespace = tproxy_netns::Namespace::new("name").unwrap();
    let name = namespace.enter(|| InstanceName::of_this_namespace(Mark::DEFAULT).to_string());
    assert_eq!(name, namespace.name());
}
