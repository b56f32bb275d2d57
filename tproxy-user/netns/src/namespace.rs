//! One network namespace.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    panic,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Error, PATIENCE, Proc, random_suffix, require_tool};

/// A named network namespace (`ip netns` shows it), removed on drop.
///
/// Processes started in it end with their [`Proc`] guards.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    handle: File,
}

impl Namespace {
    /// Makes `tp-ROLE-SUFFIX` with `lo` up.
    ///
    /// # Errors
    /// Not root, `ip` missing, or the kernel refuses.
    pub fn new(role: &str) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        require_tool("ip")?;
        require_tool("nsenter")?;
        let name = format!("tp-{role}-{}", random_suffix());
        run(Command::new("ip").args(["netns", "add", &name]), "")?;
        let path = format!("/run/netns/{name}");
        let handle = File::open(&path).map_err(Error::io(path))?;
        let namespace = Self { name, handle };
        // A new namespace inherits the host's algorithm, and bbr paces veth to a crawl.
        namespace.set_sysctl("net.ipv4.tcp_congestion_control", "reno")?;
        // Addresses are ours alone: without duplicate detection IPv6 is usable at once.
        namespace.set_sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The name `ip netns` shows.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the namespace is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `ip` commands in the namespace, one a line, and returns what they print.
    ///
    /// # Errors
    /// The first command that fails ends the batch.
    pub fn ip(&self, commands: &str) -> Result<String, Error> {
        run(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), commands)
    }

    /// A command that will run in the namespace.
    ///
    /// `nsenter` rather than `ip netns exec`: the latter mounts another `/sys`, which hides the cgroups.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a command line, split at blanks, and returns what it prints.
    ///
    /// # Errors
    /// A missing program, or one that ends with an error.
    pub fn run(&self, line: &str) -> Result<String, Error> {
        run(&mut self.line(line)?, "")
    }

    /// Runs a command line, split at blanks, with `input` on its standard input.
    ///
    /// # Errors
    /// A missing program, or one that ends with an error.
    pub fn feed(&self, line: &str, input: &str) -> Result<String, Error> {
        run(&mut self.line(line)?, input)
    }

    /// Starts a command line, split at blanks.
    ///
    /// # Errors
    /// A missing program.
    pub fn start(&self, line: &str) -> Result<Proc, Error> {
        Proc::start(self.line(line)?)
    }

    fn line(&self, line: &str) -> Result<Command, Error> {
        let mut words = line.split_whitespace();
        let program = words.next().unwrap_or_default();
        require_tool(program)?;
        let mut command = self.command(program);
        command.args(words);
        Ok(command)
    }

    /// Runs `work` on a thread of its own inside the namespace.
    ///
    /// A socket stays in the namespace it was made in, so what `work` returns may be used anywhere.
    ///
    /// # Panics
    /// When `work` does, or the kernel refuses to enter.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            move_into_link_name_space(self.handle.as_fd(), Some(LinkNameSpaceType::Network))
                .unwrap_or_else(|error| panic!("entering {}: {error}", self.name));
            work()
        };
        thread::scope(|scope| {
            scope.spawn(inside).join().unwrap_or_else(|reason| panic::resume_unwind(reason))
        })
    }

    /// A UDP socket inside, bound to an address. A socket that had the port lives on as long as a process that another thread
    /// has just begun has a copy of it: that is waited for.
    ///
    /// # Errors
    /// The kernel's; that the address is in use when it is so for longer than that.
    pub fn datagrams(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        let begun = Instant::now();
        self.enter(|| {
            loop {
                match UdpSocket::bind(address) {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < PATIENCE => {
                        thread::yield_now();
                    }
                    bound => return bound,
                }
            }
        })
    }

    /// Reads a sysctl, in the dotted spelling.
    ///
    /// # Errors
    /// No such key.
    pub fn sysctl(&self, key: &str) -> Result<String, Error> {
        let path = sysctl_path(key);
        let text = self.enter(|| fs::read_to_string(&path)).map_err(Error::io(key))?;
        Ok(text.trim().into())
    }

    /// Writes a sysctl, in the dotted spelling. The kernel looks at the namespace of the writing thread.
    ///
    /// # Errors
    /// No such key, or the kernel refuses the value.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<(), Error> {
        let path = sysctl_path(key);
        self.enter(|| fs::write(&path, value)).map_err(Error::io(format!("{key}={value}")))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("ip").args(["netns", "del", &self.name]), "") {
            tracing::warn!("the namespace {} is left behind: {error}", self.name);
        }
    }
}

fn sysctl_path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key.replace('.', "/"))
}

/// Runs to the end with `input` on stdin; returns stdout.
fn run(command: &mut Command, input: &str) -> Result<String, Error> {
    let shown = format!("{command:?}").replace('"', "");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io(&shown))?;
    // A command that ends without reading its input says why on stderr.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(Error::io(&shown))?;
    if output.status.success() {
        written.map_err(Error::io(&shown))?;
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Failed {
        command: if input.is_empty() { shown } else { format!("{shown} <<< {}", input.trim()) },
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).trim().into(),
    })
}
