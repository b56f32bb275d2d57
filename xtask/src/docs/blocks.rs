//! What a page's blocks ask to be done.

use std::process::Command;

use anyhow::{Result, bail};

use super::page::{Block, Page};

/// Something to do, and what has to come of it.
#[derive(Debug)]
pub(crate) struct Step {
    /// The number of its line.
    pub(crate) line: usize,
    pub(crate) what: What,
    /// The lines that the page shows.
    pub(crate) shown: Vec<String>,
}

#[derive(Debug, PartialEq)]
pub(crate) enum What {
    /// `client# COMMAND`
    Command { host: Option<Host>, command: String },
    /// Commands that show nothing, typed before any host is chosen.
    Script(String),
    /// A file of this name in the working directory.
    File { name: String, text: String },
    /// What the newest `tproxy run` has written since.
    Log,
    /// `^C`, Ctrl-C in the terminal of what was started last and goes on; or `^C^C`.
    Interrupt { twice: bool },
}

/// Where a command is typed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Host {
    Client,
    Gateway,
    Server,
}

impl Host {
    const ALL: [Self; 3] = [Self::Client, Self::Gateway, Self::Server];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Gateway => "gateway",
            Self::Server => "server",
        }
    }
}

/// Ctrl-C, once and twice.
const INTERRUPTS: [&str; 2] = ["^C", "^C^C"];

/// How a block of commands that is not played begins, so that readers see it too.
const NOT_RUN: &str = "# not run by the tests: ";

/// Everything that is to be done on a page, in order.
pub(crate) fn steps(page: &Page) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    for block in page.blocks() {
        if let Err(why) = add(&block, &mut steps) {
            bail!("{}:{}: {why:#}", page.path.display(), block.line);
        }
    }
    Ok(steps)
}

fn add(block: &Block, steps: &mut Vec<Step>) -> Result<()> {
    let one = |what| Step { line: block.line, what, shown: Vec::new() };
    match block.tag.as_str() {
        "console" => console(block, steps)?,
        "console,not-run" if block.text.starts_with(NOT_RUN) => {}
        "console,not-run" => bail!("the first line has to say why: {NOT_RUN}…"),
        "log" => transcript(block, &mut [one(What::Log)].into_iter().collect(), steps)?,
        "sh,run" => steps.push(one(What::Script(block.text.clone()))),
        "" => bail!("a block has to say what it is: console, log, sh, text, toml, …"),
        tag => {
            if let Some(name) = tag.strip_prefix("toml,file=") {
                steps.push(one(What::File { name: name.to_owned(), text: block.text.clone() }));
            } else if tag != "sh" && block.text.lines().any(|line| prompt(line).is_some()) {
                bail!("commands with what they show are for a block with the tag console");
            }
        }
    }
    Ok(())
}

fn console(block: &Block, steps: &mut Vec<Step>) -> Result<()> {
    let first = block.text.lines().next().unwrap_or_default();
    if prompt(first).is_none() && !INTERRUPTS.contains(&first) {
        bail!("the first line has no prompt: `client# `, `gateway# `, `server# ` or `$ `");
    }
    transcript(block, &mut Vec::new(), steps)
}

/// Reads what was typed and what was shown; `begun` is what the first lines belong to.
fn transcript(block: &Block, begun: &mut Vec<Step>, steps: &mut Vec<Step>) -> Result<()> {
    let mut lines = (block.line..).zip(block.text.lines());
    while let Some((line, text)) = lines.next() {
        if let Some((host, first)) = prompt(text) {
            let mut command = first.to_owned();
            while goes_on(&command)? {
                let Some((_, more)) = lines.next() else { bail!("a command without an end: {command}") };
                command = format!("{command}\n{more}");
            }
            begun.push(Step { line, what: What::Command { host, command }, shown: Vec::new() });
        } else if INTERRUPTS.contains(&text) {
            begun.push(Step { line, what: What::Interrupt { twice: text != "^C" }, shown: Vec::new() });
        } else if let Some(step) = begun.last_mut() {
            step.shown.push(text.to_owned());
        }
    }
    for step in begun.iter_mut() {
        while step.shown.last().is_some_and(|line| line.is_empty()) {
            step.shown.pop();
        }
    }
    steps.append(begun);
    Ok(())
}

fn prompt(line: &str) -> Option<(Option<Host>, &str)> {
    let of_host = Host::ALL.into_iter().find_map(|host| {
        let command = line.strip_prefix(host.name())?.strip_prefix("# ")?;
        Some((Some(host), command))
    });
    of_host.or_else(|| Some((None, line.strip_prefix("$ ")?)))
}

/// Whether the shell would ask for another line.
fn goes_on(command: &str) -> Result<bool> {
    if command.ends_with('\\') {
        return Ok(true);
    }
    let checked = Command::new("bash").args(["-n", "-c", command]).output()?;
    Ok(!checked.status.success() && String::from_utf8_lossy(&checked.stderr).contains("unexpected"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<Step>> {
        steps(&Page { path: "page.md".into(), text: text.into() })
    }

    #[test]
    fn commands_have_hosts_lines_and_what_they_show() {
        let steps = of(
            "# A\n\n```console\n$ a=1\nclient# b 'c\nd' \\\n  e\nshown\n\nmore\n\nserver# f\n^C\nend\n```\n",
        );
        let steps = steps.unwrap();
        let command = |host, command: &str| What::Command { host, command: command.into() };
        let expected = [
            (4, command(None, "a=1"), &[][..]),
            (5, command(Some(Host::Client), "b 'c\nd' \\\n  e"), &["shown", "", "more"]),
            (12, command(Some(Host::Server), "f"), &[]),
            (13, What::Interrupt { twice: false }, &["end"]),
        ];
        for (step, (line, what, shown)) in steps.iter().zip(&expected) {
            assert_eq!((step.line, &step.what), (*line, what));
            assert_eq!(step.shown, *shown);
        }
        assert_eq!(steps.len(), expected.len());
    }

    #[test]
    fn files_logs_and_scripts_are_steps() {
        let steps =
            of("```toml,file=a.toml\nb = 1\n```\n```log\nINFO c\n```\n```sh,run\nd\n```\n```sh\n$ e\n```\n")
                .unwrap();
        let [file, log, script] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!(file.what, What::File { name: "a.toml".into(), text: "b = 1\n".into() });
        assert_eq!((&log.what, &log.shown[..]), (&What::Log, &["INFO c".to_owned()][..]));
        assert_eq!(script.what, What::Script("d\n".into()));
    }

    #[test]
    fn a_block_says_what_it_is_and_why_it_is_not_run() {
        for (text, why) in [
            ("```\na\n```\n", "has to say what it is"),
            ("```text\ngateway# a\n```\n", "console"),
            ("```console\na\n```\n", "no prompt"),
            ("```console,not-run\n$ a\n```\n", "has to say why"),
            ("    $ a\n", "has to say what it is"),
        ] {
            let error = of(text).unwrap_err().to_string();
            assert!(error.contains(why) && error.starts_with("page.md:"), "{text}: {error}");
        }
        assert!(
            of("```console,not-run\n# not run by the tests: it takes forty minutes\n$ a\n```\n")
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn every_block_of_the_documentation_is_marked() {
        let pages = Page::all().unwrap();
        let played: usize = pages.iter().map(|page| steps(page).unwrap().len()).sum();
        assert!(played > 50, "only {played} steps");
    }
}
