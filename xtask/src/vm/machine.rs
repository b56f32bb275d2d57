//! A virtual machine that runs one job.

use std::{
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;

/// MiB: the layer over this host's files is in memory.
const MEMORY: &str = "3072";

/// One that has no disk and no network, but this host's files.
pub(super) struct Machine<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) cpus: u32,
    pub(super) limit: Duration,
}

/// Ends with its guard.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has mostly ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine<'_> {
    /// Runs a job, which is a shell script, and shows what it writes; false when it fails.
    pub(super) fn run(&self, job: &str) -> Result<bool> {
        // Now and then QEMU's translator takes the booting kernel's changes to its own code amiss (an int3 in a jump label),
        // and the kernel panics before it has come to the job.
        for _ in 0..3 {
            let console = self.boot(job)?;
            if let Some((_, rest)) = console.split_once("machine: the job ended with ") {
                return Ok(rest.split_whitespace().next() == Some("0"));
            }
            if console.contains("machine: booted") {
                bail!("the machine ended within the job: {}", last_lines(&console));
            }
            println!("the machine did not boot: {}", last_lines(&console));
        }
        bail!("the machine does not boot")
    }

    /// What the kernel and its first process wrote.
    fn boot(&self, job: &str) -> Result<String> {
        let directory = super::directory()?;
        let own = |name| directory.join(format!("{name}-{}", std::process::id()));
        let (script, console) = (own("job"), own("console"));
        fs::write(&script, job)?;
        let words = format!(
            "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic 8250.nr_uarts=2 nokaslr job={}",
            script.display()
        );
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-m",
            MEMORY,
            "-smp",
            &self.cpus.to_string(),
        ])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"])
        .args(["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"])
        .args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"])
        .arg("-kernel")
        .arg(&self.kernel.image)
        .arg("-initrd")
        .arg(&self.kernel.initramfs)
        .args([
            "-append",
            &words,
            "-serial",
            &format!("file:{}", console.display()),
            "-serial",
            "stdio",
        ]);
        let running = qemu.stdin(Stdio::null()).spawn().context("qemu-system-x86_64")?;
        let ended = wait(Running(running), self.limit);
        let said = fs::read(&console).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        for file in [script, console] {
            let _ = fs::remove_file(file);
        }
        let said = said.unwrap_or_default();
        match ended? {
            true => Ok(said),
            false => bail!("the machine took more than {:?}: {}", self.limit, last_lines(&said)),
        }
    }
}

/// Whether it ended by itself.
fn wait(mut running: Running, limit: Duration) -> Result<bool> {
    const BETWEEN_LOOKS: Duration = Duration::from_millis(200);
    let began = Instant::now();
    while began.elapsed() < limit {
        if running.0.try_wait()?.is_some() {
            return Ok(true);
        }
        thread::sleep(BETWEEN_LOOKS);
    }
    Ok(false)
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
