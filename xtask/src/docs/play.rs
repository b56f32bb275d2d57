//! Plays one page.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    blocks::{Step, What},
    compare,
    page::Page,
    session::{Running, Session},
};

/// What takes longer is said, since it makes the tests long.
const LONG: Duration = Duration::from_secs(5);

/// Plays what comes `before` the page, and the page.
pub(crate) fn page(page: &Page, before: &[Step], steps: &[Step], tproxy: &Path) -> Result<()> {
    let mut player = Player { session: Session::start(tproxy)?, running: Vec::new() };
    for step in before {
        player.play(step).context("the network that docs/tour.md makes")?;
    }
    for step in steps {
        let start = Instant::now();
        player.play(step).with_context(|| format!("{}:{}", page.path.display(), step.line))?;
        if start.elapsed() > LONG {
            println!("{}:{} took {:.1?}", page.path.display(), step.line, start.elapsed());
        }
    }
    Ok(())
}

struct Player {
    session: Session,
    /// What goes on, the newest last.
    running: Vec<Running>,
}

impl Player {
    fn play(&mut self, step: &Step) -> Result<()> {
        match &step.what {
            What::File { name, text } => self.session.write(name, text),
            What::Script(text) => self.session.run(None, text)?.success(),
            What::Command { host, command } if goes_on(command) => {
                self.end_tproxy(|running| running.host == *host && command.starts_with("tproxy run"))?;
                let mut running = self.session.start_command(*host, command)?;
                self.begun(&mut running, &step.shown)?;
                self.running.push(running);
                Ok(())
            }
            What::Command { host, command } => {
                let ended = self.session.run(*host, command)?;
                if compare::same(&step.shown, &ended.lines) && (ended.code == "0" || !step.shown.is_empty()) {
                    return Ok(());
                }
                bail!("{command}\n{}", differs(&step.shown, &ended.lines, &ended.code))
            }
            What::Log => {
                let log = self.running.iter_mut().rev().find(|running| running.is_tproxy());
                written(log.context("no `tproxy run` goes on")?, &step.shown)
            }
            What::Interrupt { twice } => {
                let mut running = self.running.pop().context("nothing goes on")?;
                match twice {
                    false => self.session.interrupt(&mut running)?,
                    true => self.session.interrupt_twice(&mut running)?,
                }
                written(&mut running, &step.shown)
            }
        }
    }

    /// Waits for what was started to be of use.
    fn begun(&mut self, running: &mut Running, shown: &[String]) -> Result<()> {
        if !shown.is_empty() {
            return written(running, shown);
        }
        if running.is_tproxy() {
            return written(running, &["INFO ready: steering is in place".to_owned()]);
        }
        self.session.wait_socket(running)
    }

    /// A host has one terminal for `tproxy run`: the next one takes the place of the last.
    fn end_tproxy(&mut self, which: impl Fn(&Running) -> bool) -> Result<()> {
        let ended = self.running.iter().position(|running| running.is_tproxy() && which(running));
        ended.map_or(Ok(()), |ended| self.session.interrupt_twice(&mut self.running.remove(ended)))
    }
}

/// Whether a command has a terminal of its own, since it goes on until it is interrupted.
fn goes_on(command: &str) -> bool {
    const GOING_ON: &[&str] = &[
        "tproxy run",
        "tproxy trace",
        "tproxy flows --follow",
        "python3 ",
        "dnsmasq ",
        "socat -u UDP-RECV",
        "socat TCP-LISTEN:",
        "socat SYSTEM:",
        "target/debug/examples/intercept",
    ];
    GOING_ON.iter().any(|start| command.starts_with(start))
}

/// Waits until what is shown was written.
fn written(running: &mut Running, shown: &[String]) -> Result<()> {
    running.wait_for(|came| compare::take(shown, came).is_ok()).map_err(|mut came| {
        let all = came.clone();
        let missing = compare::take(shown, &mut came).err().unwrap_or_default();
        anyhow::anyhow!(
            "{}\nis shown, and was not written:\n  {missing}\nbut:\n  {}",
            running.command,
            all.join("\n  ")
        )
    })
}

fn differs(shown: &[String], came: &[String], code: &str) -> String {
    format!("shown:\n  {}\ncame, with exit code {code}:\n  {}", shown.join("\n  "), came.join("\n  "))
}
