//! The `tproxy` command.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Parser as _, error::ErrorKind};
use tproxy::{
    bench,
    cli::{Cli, Command, one_line},
    host::Report,
    logging, run,
};

/// The runtime keeps a connection's state in pieces that are aligned to 128 bytes, of which glibc wastes a third.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
            let (format, verbose) = (flags.log_format, flags.verbose);
            let config = match flags.into_config() {
                Ok(config) => config,
                Err(error) => return fail(&format!("error: {error}"), USAGE),
            };
            logging::init(format, verbose);
            finish(serve(config, verbose >= 2))
        }
        Command::Bench(args) => {
            logging::init(logging::Format::Text, 0);
            finish(bench::main(&args).map(|report| print(&report)))
        }
        Command::BenchRelay(flags) => finish(relay(*flags)),
        Command::BenchSingly(flags) => {
            finish(flags.into_config().map_err(Into::into).and_then(|config| bench::singly(&config)))
        }
        Command::BenchHotPath(args) => finish(bench::hot_path(&args)),
        Command::BenchMany(flags) => {
            logging::init(logging::Format::Text, 0);
            finish(flags.into_config().and_then(|config| serve(config, false)))
        }
        Command::Cleanup => {
            logging::init(logging::Format::Text, 0);
            finish(run::cleanup().and_then(|reports| report(&reports)))
        }
        Command::Send(datagram) => match datagram.check() {
            Ok(datagram) => finish(datagram.send().map(|line| print(&format!("{line}\n")))),
            Err(error) => fail(&format!("error: {error}"), USAGE),
        },
    }
}

#[tokio::main(flavor = "current_thread")]
async fn serve(config: tproxy::config::Config, verbose: bool) -> anyhow::Result<()> {
    run::run(config, verbose).await
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
