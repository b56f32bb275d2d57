//! The `tproxy` command.

mod allocator;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Parser as _, error::ErrorKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tproxy::{
    config::{self, Mistakes},
    host::Reclaimed,
};
use tproxy_cli::{
    cli::{self, Cli, RunArgs, Subcommand, one_line},
    doctor::{self, Level},
    explain, logging,
    run::{self, Start},
    top,
    trace::{self, TraceError},
};

/// Exit code for a command line or a file that makes no sense, as clap and the shell have it.
const USAGE: u8 = 2;
/// Exit code of `doctor` where it warns of something, and nothing fails.
const WARNINGS: u8 = 3;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(help) if matches!(help.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => help.exit(),
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
        Err(error) => return fail(&one_line(&error), USAGE),
    };
    match cli.command {
        Subcommand::Run(flags) => {
            let RunArgs { log_format, verbose, watch, flags } = *flags;
            let file = flags.file();
            match flags.into_config() {
                Err(mistakes) => refuse(&mistakes),
                Ok(config) => {
                    let _logging = logging::init(log_format, verbose);
                    allocator::begin_small();
                    finish(serve(Start {
                        config,
                        file,
                        watch,
                        verbose: verbose >= 2,
                        settled: allocator::settle,
                    }))
                }
            }
        }
        Subcommand::Bench(args) => {
            let _logging = logging::init(logging::Format::Text, 0);
            finish(tproxy_bench::main(&args).and_then(|report| print(&report)))
        }
        Subcommand::BenchRelay(flags) => finish(relay(*flags)),
        Subcommand::BenchSingly(flags) => finish(
            flags.flags.into_config().map_err(Into::into).and_then(|config| tproxy_bench::singly(&config)),
        ),
        Subcommand::BenchMany(flags) => {
            let _logging = logging::init(logging::Format::Text, 0);
            finish(flags.into_config().and_then(|config| {
                serve(Start { config, file: None, watch: false, verbose: false, settled: allocator::settle })
            }))
        }
        Subcommand::Config(show) if show.schema => finish(print(&config::schema())),
        Subcommand::Config(show) => match show.flags.into_config() {
            Err(mistakes) => refuse(&mistakes),
            Ok(config) => finish(config.to_toml().map_err(Into::into).and_then(|toml| print(&toml))),
        },
        Subcommand::Check(check) => match config::load(&check.file) {
            Err(errors) => refuse(&Mistakes(errors.lines().collect())),
            Ok(config) => finish(ask(check.compare(&config))),
        },
        Subcommand::Completions { shell } => {
            finish(cli::completions(shell, &mut io::stdout()).map_err(Into::into))
        }
        Subcommand::Man { directory } => finish(cli::man(&directory).map_err(Into::into)),
        Subcommand::Status(show) => finish(ask(show.status())),
        Subcommand::Rules(show) => finish(ask(show.rules())),
        Subcommand::Upstreams(show) => finish(ask(show.upstreams())),
        Subcommand::Flows(flows) => finish(ask(flows.show())),
        Subcommand::Top(args) => finish(ask(top::main(args))),
        Subcommand::Close(close) => finish(ask(close.close())),
        Subcommand::Reload(reload) => finish(ask(reload.reload())),
        Subcommand::Confirm(confirm) => finish(ask(confirm.confirm())),
        Subcommand::Drain(drain) => finish(ask(drain.drain())),
        Subcommand::Metrics(metrics) => finish(ask(metrics.show())),
        Subcommand::Doctor(args) => {
            let _logging = logging::init(logging::Format::Text, 0);
            let report = doctor::examine(&args);
            if let Err(error) = print(&if args.json { as_json(&report) } else { report.to_string() }) {
                return fail(&format!("error: {error}"), 1);
            }
            match report.worst {
                Level::Ok => ExitCode::SUCCESS,
                Level::Warn => ExitCode::from(WARNINGS),
                Level::Fail => ExitCode::FAILURE,
            }
        }
        Subcommand::Explain(args) => {
            let _logging = logging::init(logging::Format::Text, 0);
            finish(explain(&args))
        }
        Subcommand::Trace(args) => {
            let _logging = logging::init(logging::Format::Text, 0);
            finish(trace(&args))
        }
        Subcommand::Cleanup => {
            let _logging = logging::init(logging::Format::Text, 0);
            finish(run::cleanup().and_then(|reports| report(&reports)))
        }
        Subcommand::Send(datagram) => match datagram.check() {
            Ok(datagram) => finish(datagram.send().and_then(|line| print(&format!("{line}\n")))),
            Err(error) => fail(&format!("error: {error}"), USAGE),
        },
    }
}

#[tokio::main(flavor = "current_thread")]
async fn serve(start: Start) -> anyhow::Result<()> {
    run::run(start).await
}

#[tokio::main(flavor = "current_thread")]
async fn ask(answer: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    answer.await
}

#[tokio::main(flavor = "current_thread")]
async fn relay(flags: RunArgs) -> anyhow::Result<()> {
    let _logging = logging::init(flags.log_format, flags.verbose);
    tproxy_bench::without_datapath(flags.flags.into_config()?).await
}

fn explain(args: &explain::Args) -> anyhow::Result<()> {
    let config = if args.run.is_empty() { None } else { Some(Cli::config_of_run(&args.run)?) };
    let explanations = explain::explain(args, config.as_ref())?;
    let texts: Vec<_> = explanations.iter().map(ToString::to_string).collect();
    print(&if args.json { as_json(&explanations) } else { texts.join("\n") })
}

/// That nobody reads any more is no failure.
fn trace(args: &trace::Args) -> anyhow::Result<()> {
    let says = |text: &str| tracing::info!("{text}");
    match trace::follow(args, &mut io::stdout().lock(), says) {
        Err(TraceError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        ended => Ok(ended?),
    }
}

/// Pretty, and with a newline at its end.
fn as_json(answer: &impl serde::Serialize) -> String {
    let text =
        serde_json::to_string_pretty(answer).unwrap_or_else(|error| unreachable!("plain data: {error}"));
    text + "\n"
}

#[expect(clippy::print_stdout, reason = "the answer to the command")]
fn report(reports: &[Reclaimed]) -> anyhow::Result<()> {
    if reports.is_empty() {
        println!("nothing was left over");
    }
    for line in reports {
        println!("{line}");
    }
    let failed = reports.iter().filter(|report| report.is_failure()).count();
    anyhow::ensure!(failed == 0, "{failed} of these could not be undone");
    Ok(())
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(io::stdout().write_all(text.as_bytes())?)
}

fn refuse(Mistakes(lines): &Mistakes) -> ExitCode {
    fail(&lines.join("\n"), USAGE)
}

fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The texts of our errors include their causes'.
        Err(error) => fail(&format!("error: {error}"), 1),
    }
}

/// The one line that says what is wrong, if there is anybody to read it: a pipe that nobody empties is not waited for.
fn fail(line: &str, code: u8) -> ExitCode {
    let stderr = io::stderr();
    let patience = Timespec { tv_sec: 1, tv_nsec: 0 };
    let mut writable = [PollFd::new(&stderr, PollFlags::OUT)];
    if poll(&mut writable, Some(&patience)).is_ok_and(|ready| ready > 0) {
        let _ = writeln!(&stderr, "{line}");
    }
    ExitCode::from(code)
}
