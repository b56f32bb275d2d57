//! A child process whose output can be waited for.

use std::{
    fmt,
    io::{BufRead, BufReader, Read},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::Error;

/// A running program; killed and reaped on drop.
#[derive(Debug)]
pub struct Proc {
    command: String,
    child: Child,
    pidfd: OwnedFd,
    output: Arc<Output>,
}

#[derive(Debug, Default)]
struct Output {
    written: Mutex<Written>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Written {
    lines: Vec<String>,
    open_pipes: usize,
}

impl Proc {
    /// Starts `command` without input; both of its outputs are collected by line.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(mut command: Command) -> Result<Self, Error> {
        let shown = format!("{command:?}").replace('"', "");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Error::io(&shown))?;
        let output = Arc::new(Output::default());
        output.lock().open_pipes = 2;
        output.collect(child.stdout.take());
        output.collect(child.stderr.take());
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .map_err(|error| Error::io(&shown)(error.into()))?;
        Ok(Self { command: shown, child, pidfd, output })
    }

    /// The process id: of the program itself, since `nsenter` replaces itself by it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything written so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.output.lock().lines.clone()
    }

    /// How many lines were written so far: a place to wait from.
    #[must_use]
    pub fn position(&self) -> usize {
        self.output.lock().lines.len()
    }

    /// Waits for a line that contains each of `words`, written now or before.
    ///
    /// # Errors
    /// [`Error::Timeout`], also as soon as the process has ended without it.
    pub fn wait_line(&self, words: &[&str], timeout: Duration) -> Result<String, Error> {
        self.wait_line_from(0, words, timeout)
    }

    /// [`Proc::wait_line`] among the lines from `position` on.
    ///
    /// # Errors
    /// [`Error::Timeout`], also as soon as the process has ended without it.
    pub fn wait_line_from(
        &self,
        position: usize,
        words: &[&str],
        timeout: Duration,
    ) -> Result<String, Error> {
        let deadline = Instant::now() + timeout;
        let mut written = self.output.lock();
        loop {
            let found =
                written.lines.iter().skip(position).find(|line| words.iter().all(|w| line.contains(w)));
            if let Some(line) = found {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || written.open_pipes == 0 {
                return Err(self.timeout(format!("a line with {words:?}"), timeout, &written));
            }
            written = self.output.grown.wait_timeout(written, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the process has ended and its output is complete.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus, Error> {
        let left = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
        let ended = poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&left));
        if !matches!(ended, Ok(1..)) {
            return Err(self.timeout("its end".into(), timeout, &self.output.lock()));
        }
        let status = self.child.wait().map_err(Error::io(&self.command))?;
        let mut written = self.output.lock();
        // A grandchild may hold the pipes open; what the process itself wrote is there by then.
        let deadline = Instant::now() + Duration::from_secs(1);
        while written.open_pipes > 0 && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            written = self.output.grown.wait_timeout(written, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(status)
    }

    /// Sends a signal; to a process that has ended, to nobody.
    pub fn signal(&self, signal: Signal) {
        // The descriptor names this very process, even after its number was given to another.
        if let Err(error) = pidfd_send_signal(&self.pidfd, signal) {
            tracing::debug!("{}: {error}", self.command);
        }
    }

    /// Ends it the hard way, and waits until the kernel has closed all it held.
    pub fn kill9(&mut self) {
        self.signal(Signal::KILL);
        if let Err(error) = self.child.wait() {
            tracing::warn!("{}: {error}", self.command);
        }
    }

    fn timeout(&self, mut event: String, timeout: Duration, written: &Written) -> Error {
        if written.open_pipes == 0 {
            event.push_str(" (it has ended)");
        }
        Error::Timeout { command: self.command.clone(), event, timeout, output: written.lines.join("\n") }
    }
}

/// Shows the command and all it wrote: the context of a failed assertion.
impl fmt::Display for Proc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--- {} wrote:\n{}\n---", self.command, self.lines().join("\n"))
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.kill9();
    }
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(self: &Arc<Self>, pipe: Option<impl Read + Send + 'static>) {
        let output = Arc::clone(self);
        thread::spawn(move || {
            for line in
                pipe.into_iter().flat_map(|pipe| BufReader::new(pipe).split(b'\n')).map_while(Result::ok)
            {
                output.lock().lines.push(String::from_utf8_lossy(&line).into_owned());
                output.grown.notify_all();
            }
            output.lock().open_pipes -= 1;
            output.grown.notify_all();
        });
    }
}
