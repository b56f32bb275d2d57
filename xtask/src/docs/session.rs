//! A shell of a page's own: processes, mounts and what is below `/run` are seen and survived by nobody else.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::blocks::Host;
use crate::workspace;

/// The longest that anything is waited for: so long that on the busiest machine only what does not come at all takes it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Mounts that are gone with the shell, and standard input that never has anything.
const SETUP: &str = "mount -t tmpfs tmpfs /run && mkdir /run/netns && mount -t bpf bpf /sys/fs/bpf && \
                     mkfifo .stdin && exec 9<>.stdin; echo $?";

/// bash as the first process of a process namespace, which takes all others with it.
pub(crate) struct Session {
    shell: Child,
    typed: ChildStdin,
    told: Receiver<String>,
    /// The working directory, which is removed at the end.
    directory: PathBuf,
    outputs: usize,
}

/// A command that goes on.
pub(crate) struct Running {
    pid: String,
    pub(crate) host: Option<Host>,
    pub(crate) command: String,
    output: PathBuf,
    /// How many of its lines have been looked at.
    seen: usize,
    /// Whether nothing more can come.
    ended: bool,
}

impl Session {
    pub(crate) fn start(tproxy: &Path) -> Result<Self> {
        let binaries = tproxy.parent().context("a binary is in a directory")?;
        let directory = std::env::temp_dir().join(format!("tproxy-docs-{:x}", std::process::id()));
        let directory = (0..).map(|number| directory.with_extension(format!("{number}")));
        let directory =
            directory.into_iter().find(|path| fs::create_dir(path).is_ok()).context("a directory")?;
        // As in a clone after `cargo build`.
        fs::create_dir(directory.join("target"))?;
        std::os::unix::fs::symlink(workspace().join("deploy").canonicalize()?, directory.join("deploy"))?;
        std::os::unix::fs::symlink(binaries, directory.join("target/debug"))?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "--norc"])
            .env("PATH", format!("{}:{path}:/usr/sbin:/sbin", binaries.display()))
            .envs([("LC_ALL", "C.UTF-8"), ("PYTHONUNBUFFERED", "1")])
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It tells which of its jobs were killed.
            .stderr(Stdio::null())
            .spawn()
            .context("unshare")?;
        let (tell, told) = mpsc::channel();
        let lines = BufReader::new(shell.stdout.take().context("piped")?).lines();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let typed = shell.stdin.take().context("piped")?;
        let mut session = Self { shell, typed, told, directory, outputs: 0 };
        match session.ask(SETUP)?.as_str() {
            "0" => Ok(session),
            code => bail!("{SETUP}: {code}"),
        }
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.directory.join(name), text).with_context(|| name.to_owned())
    }

    /// Runs a command to its end.
    pub(crate) fn run(&mut self, host: Option<Host>, command: &str) -> Result<Ended> {
        let output = self.output()?;
        let run = match host {
            // In the shell itself, so that variables stay.
            None => format!("{{ {command}\n}}"),
            Some(host) => format!("{} {}", inside(host), quoted(command)),
        };
        let code = self.ask(&format!("{run} >{} 2>&1 <&9; echo $?", output.display()))?;
        Ok(Ended { code, lines: lines(&output)? })
    }

    /// Starts a command in a terminal of its own, so to speak.
    pub(crate) fn start_command(&mut self, host: Option<Host>, command: &str) -> Result<Running> {
        let output = self.output()?;
        let run = match host {
            None => format!("bash -c {}", quoted(&format!("exec {command}"))),
            Some(host) => format!("{} {}", inside(host), quoted(&format!("exec {command}"))),
        };
        let pid = self.ask(&format!("{run} >{} 2>&1 <&9 & echo $!", output.display()))?;
        Ok(Running { pid, host, command: command.to_owned(), output, seen: 0, ended: false })
    }

    /// Ctrl-C, and waits for the end.
    pub(crate) fn interrupt(&mut self, running: &mut Running) -> Result<()> {
        running.ended = true;
        self.ask(&format!("kill -INT {0}; wait {0}; echo $?", running.pid))?;
        Ok(())
    }

    /// Ctrl-C twice: the second one, for what waits at the first for flows to end.
    pub(crate) fn interrupt_twice(&mut self, running: &mut Running) -> Result<()> {
        if self.ask(&format!("kill -INT {}; echo $?", running.pid))? == "0" {
            until(|| {
                Ok(lines(&running.output)?.iter().any(|line| line.contains(" draining: ")).then_some(()))
            })?;
        }
        self.interrupt(running)
    }

    /// Waits for the command to have a socket that others can reach.
    pub(crate) fn wait_socket(&mut self, running: &Running) -> Result<()> {
        let ours = format!("ss -Hanptu | grep -q pid={},", running.pid);
        until(|| {
            let ended = self.run(running.host, &ours)?;
            Ok((ended.code == "0").then_some(()))
        })?
        .with_context(|| format!("`{}` has no socket", running.command))
    }

    /// A file for what a command writes. It is there before the command is, which makes no hurry to open it.
    fn output(&mut self) -> Result<PathBuf> {
        self.outputs += 1;
        let name = format!(".output-{}", self.outputs);
        self.write(&name, "")?;
        Ok(self.directory.join(name))
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.typed, "{line}").context("the shell has ended")?;
        self.told.recv_timeout(PATIENCE).with_context(|| format!("waited for {PATIENCE:?}"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // With `--kill-child`, the shell goes when `unshare` does, and everything with it.
        let _gone = self.shell.kill().and_then(|()| self.shell.wait());
        let _removed = fs::remove_dir_all(&self.directory);
    }
}

/// How a command ended, and what it wrote.
pub(crate) struct Ended {
    pub(crate) code: String,
    pub(crate) lines: Vec<String>,
}

impl Ended {
    pub(crate) fn success(self) -> Result<()> {
        if self.code != "0" {
            bail!("exit code {}:\n{}", self.code, self.lines.join("\n"));
        }
        Ok(())
    }
}

impl Running {
    /// Whether it is `tproxy run`, which has a log.
    pub(crate) fn is_tproxy(&self) -> bool {
        self.command.starts_with("tproxy run")
    }

    /// What it has written since the last time, once that is enough.
    pub(crate) fn wait_for(&mut self, enough: impl Fn(&mut Vec<String>) -> bool) -> Result<(), Vec<String>> {
        let mut fresh = Vec::new();
        let found = until(|| {
            let all = lines(&self.output)?;
            fresh = all[self.seen..].to_vec();
            let outcome = if enough(&mut fresh.clone()) { Some(Ok(all.len())) } else { None };
            Ok(outcome.or_else(|| self.ended.then_some(Err(()))))
        });
        let Ok(Some(Ok(seen))) = found else { return Err(fresh) };
        self.seen = seen;
        Ok(())
    }
}

/// Looks again and again, until there is something or patience ends.
fn until<T>(mut look: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(None)
}

/// The lines that are complete.
fn lines(output: &Path) -> Result<Vec<String>> {
    let text = String::from_utf8_lossy(&fs::read(output).with_context(|| format!("{}", output.display()))?)
        .into_owned();
    Ok(text.lines().map(str::to_owned).collect())
}

/// As docs/tour.md has it.
fn inside(host: Host) -> String {
    // What a shell starts in the background ignores Ctrl-C, unless it is told otherwise.
    format!("nsenter --net=/run/netns/$N-{} env --default-signal=INT bash -c", host.name())
}

fn quoted(command: &str) -> String {
    format!("'{}'", command.replace('\'', r"'\''"))
}
