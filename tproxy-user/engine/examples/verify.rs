//! What the running kernel's verifier makes of each program of the committed object; needs root.
//!
//! Names aya although the library keeps that to its datapath: this is a look at the object, not a use of tproxy.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "printing is what it is for")]

use std::{collections::BTreeMap, process::ExitCode};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{Program, ProgramError, ProgramInfo},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tproxy::mark::Mark;
use tproxy_common::abi::global;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/ebpf/tproxy.o"));

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    match verify() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn verify() -> Outcome<()> {
    println!(
        "{:<18} {:>8} {:>8} {:>9} {:>9} {:>8} {:>8} {:>6}  stack",
        "program", "object", "kernel", "jited", "verified", "states", "peak", "time"
    );
    println!(
        "{:<18} {:>8} {:>8} {:>9} {:>9} {:>8} {:>8} {:>6}  bytes a function",
        "", "insns", "insns", "bytes", "insns", "", "", "ms"
    );
    let instructions = instructions()?;
    // As an instance that logs sets them: the verifier leaves out what a constant rules out.
    let mut ebpf = EbpfLoader::new()
        .override_global(global::STEER_MARK, &Mark::DEFAULT.steer(), true)
        .override_global(global::OWN_MARK, &Mark::DEFAULT.own(), true)
        .override_global(global::MARK_MASK, &Mark::DEFAULT.mask(), true)
        .override_global(global::WORKERS, &2_u32, true)
        .override_global(global::SK_ASSIGN, &1_u8, true)
        .override_global(aya_log::LEVEL, &u8::MAX, false)
        .verifier_log_level(VerifierLogLevel::STATS)
        .load(OBJECT)?;
    let mut names: Vec<_> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
    names.sort();
    let mut refused = Vec::new();
    for name in names {
        if let Err(error) = show(&mut ebpf, &name, &instructions) {
            eprintln!("{name}: {error}");
            refused.push(name);
        }
    }
    if refused.is_empty() { Ok(()) } else { Err(format!("refused: {}", refused.join(", ")).into()) }
}

fn show(ebpf: &mut Ebpf, name: &str, instructions: &BTreeMap<String, usize>) -> Outcome<()> {
    let log = verifier_log(ebpf, name)?;
    let info = load(ebpf, name)??;
    let number = |after: &str| number(&log, after).map_or("?".into(), |number| number.to_string());
    println!(
        "{name:<18} {:>8} {:>8} {:>9} {:>9} {:>8} {:>8} {:>6}  {}",
        instructions[name],
        info.size_translated().map_or("?".into(), |bytes| (bytes / 8).to_string()),
        info.size_jitted(),
        info.verified_instruction_count().map_or("?".into(), |count| count.to_string()),
        number("total_states "),
        number("peak_states "),
        number("verification time ").parse::<u64>().map_or("?".into(), |us| (us / 1000).to_string()),
        log.lines().find_map(|line| line.strip_prefix("stack depth ")).unwrap_or("?"),
    );
    Ok(())
}

/// Of each program as the object has it, with the functions it calls.
fn instructions() -> Outcome<BTreeMap<String, usize>> {
    let mut object = aya_obj::Object::parse(OBJECT)?;
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections)?;
    let count = |program: &aya_obj::Program| object.functions[&program.function_key()].instructions.len();
    Ok(object.programs.iter().map(|(name, program)| (name.clone(), count(program))).collect())
}

fn load(ebpf: &mut Ebpf, name: &str) -> Outcome<Result<ProgramInfo, ProgramError>> {
    Ok(match ebpf.program_mut(name).ok_or("no such program")? {
        Program::SchedClassifier(program) => program.load().and_then(|()| program.info()),
        Program::SkLookup(program) => program.load().and_then(|()| program.info()),
        Program::SkReuseport(program) => program.load().and_then(|()| program.info()),
        other => return Err(format!("{name} is of a type unknown here: {:?}", other.prog_type()).into()),
    })
}

/// The verifier's statistics.
///
/// aya hands its log out only with an error; so the load is made to fail, but after the verifier has done its work:
/// the process may not have one more file descriptor, which is the last thing a load asks for.
fn verifier_log(ebpf: &mut Ebpf, name: &str) -> Outcome<String> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit })?;
    let loaded = load(ebpf, name);
    setrlimit(Resource::Nofile, limit)?;
    match loaded? {
        Err(ProgramError::LoadError { io_error, verifier_log })
            if io_error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) =>
        {
            Ok(verifier_log.to_string())
        }
        Err(error) => Err(format!("{name}: {error}").into()),
        Ok(_) => Err(format!("{name}: loaded without a file descriptor").into()),
    }
}

/// The number that stands behind `after`.
fn number(log: &str, after: &str) -> Option<u64> {
    let (_, rest) = log.split_once(after)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
