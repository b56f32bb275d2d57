//! The `tproxy` command.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Parser as _, error::ErrorKind};
use tproxy::{
    bench,
    cli::{Cli, Command, one_line},
    control::Operator,
    host::Report,
    logging, run, top,
};

/// Exit code for a command line that makes no sense, as clap and the shell have it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(help) if matches!(help.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => help.exit(),
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
        Err(error) => return fail(&one_line(&error), USAGE),
    };
    match cli.command {
        Command::Run(flags) => {
            let (format, verbose, operator) = (flags.log_format, flags.verbose, flags.operator.clone());
            let config = match flags.into_config() {
                Ok(config) => config,
                Err(error) => return fail(&format!("error: {error}"), USAGE),
            };
            logging::init(format, verbose);
            finish(serve(config, operator, verbose >= 2))
        }
        Command::Bench(args) => {
            logging::init(logging::Format::Text, 0);
            finish(bench::main(&args).map(|report| print(&report)))
        }
        Command::BenchRelay(flags) => finish(relay(*flags)),
        Command::BenchMany(flags) => {
            logging::init(logging::Format::Text, 0);
            finish(flags.into_config().and_then(|config| serve(config, Operator::default(), false)))
        }
        Command::Status(show) => finish(ask(show.status())),
        Command::Rules(show) => finish(ask(show.rules())),
        Command::Flows(flows) => finish(ask(flows.show())),
        Command::Top(args) => finish(ask(top::main(args))),
        Command::Close(close) => finish(ask(close.close())),
        Command::Drain(drain) => finish(ask(drain.drain())),
        Command::Metrics(metrics) => finish(ask(metrics.show())),
        Command::Cleanup => {
            logging::init(logging::Format::Text, 0);
            finish(run::cleanup().and_then(|reports| report(&reports)))
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn serve(config: tproxy::config::Config, operator: Operator, verbose: bool) -> anyhow::Result<()> {
    run::run(config, operator, verbose).await
}

#[tokio::main(flavor = "current_thread")]
async fn ask(answer: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    answer.await
}

#[tokio::main(flavor = "current_thread")]
async fn relay(flags: tproxy::cli::Run) -> anyhow::Result<()> {
    logging::init(flags.log_format, flags.verbose);
    bench::without_datapath(flags.into_config()?).await
}

#[expect(clippy::print_stdout, reason = "the answer to the command")]
fn print(text: &str) {
    print!("{text}");
}

#[expect(clippy::print_stdout, reason = "the answer to the command")]
fn report(reports: &[Report]) -> anyhow::Result<()> {
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

fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The texts of our errors include their causes'.
        Err(error) => fail(&format!("error: {error}"), 1),
    }
}

/// The one line that says what is wrong, if there is anybody to read it.
fn fail(line: &str, code: u8) -> ExitCode {
    let _ = writeln!(io::stderr(), "{line}");
    ExitCode::from(code)
}
