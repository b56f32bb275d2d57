//! `cargo xtask vm`: the programs and the scenarios on other kernels, in a virtual machine that needs no acceleration.

mod initramfs;
mod kernel;
mod machine;
mod programs;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use kernel::Kernel;
use machine::Machine;
use programs::Programs;

use crate::host::{self, TOOLS, Tool};

/// Of a kernel's machine, beside what the tests run.
const VM_TOOLS: &[Tool] = &[
    Tool {
        command: "qemu-system-x86_64",
        package: "qemu-system-x86",
        reason: "is the virtual machine",
        demo: false,
    },
    Tool { command: "cpio", package: "cpio", reason: "packs the machine's first files", demo: false },
    Tool { command: "depmod", package: "kmod", reason: "sorts the kernel's modules", demo: false },
];

/// Scenarios of each scope, engine, family and protocol, and of what differs between kernels: how programs are attached.
const CHOSEN: &[&str] =
    &["forwarded::", "inbound::", "outbound::", "udp::direct", "stop::", "clean::", "reload::"];

/// One a scope, with both families and protocols.
const SMOKE: &[&str] = &[
    "forwarded::direct_relays_to_the_original_destination_and_the_server_sees_the_gateway",
    "outbound::direct_relays_to_the_original_destination",
    "inbound::direct_hands_the_connection_to_the_application",
];

/// The oldest that is supported, and the first long-term one with tcx.
const KERNELS: [&str; 2] = ["6.1", "6.12"];
const LIMIT: u64 = 1800;
const CPUS: u32 = 2;

/// Runs verification, the datapath's property tests and scenarios on other kernels, in QEMU (root)
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Debian's kernels by their version, or a file: linux-image-….deb
    #[arg(long = "kernel", value_name = "VERSION|FILE", default_values = KERNELS)]
    kernels: Vec<String>,
    /// Only verification, and a scenario of each scope
    #[arg(long, conflicts_with = "filter")]
    smoke: bool,
    /// Seconds that a machine may take
    #[arg(long, default_value_t = LIMIT)]
    limit: u64,
    /// CPUs of the machine
    #[arg(long, default_value_t = CPUS)]
    cpus: u32,
    /// Scenarios to run in place of the chosen ones: names to filter by; other options of the test program
    #[arg(last = true)]
    filter: Vec<String>,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    host::require_root("vm")?;
    host::require_tools(TOOLS.iter().chain(VM_TOOLS))?;
    let programs = Programs::build()?;
    let mut failed = Vec::new();
    for version in &args.kernels {
        let kernel = Kernel::find(version)?;
        println!("\n==> Linux {}", kernel.release);
        let machine = Machine { kernel: &kernel, cpus: args.cpus, limit: Duration::from_secs(args.limit) };
        if !machine.run(&job(&programs, args))? {
            failed.push(kernel.release);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed on Linux {}", failed.join(", ")) }
}

/// What CI does: verification and a scenario of each scope.
pub(crate) fn smoke() -> Result<()> {
    main(&Args::of_ci(true))
}

/// What it does at night: the property tests of the datapath as well, and all that was chosen.
pub(crate) fn chosen() -> Result<()> {
    main(&Args::of_ci(false))
}

impl Args {
    fn of_ci(smoke: bool) -> Self {
        Self {
            kernels: KERNELS.map(str::to_owned).into(),
            smoke,
            limit: LIMIT,
            cpus: CPUS,
            filter: Vec::new(),
        }
    }
}

/// The shell's words. All of it runs, whatever fails first.
fn job(programs: &Programs, args: &Args) -> String {
    let chosen: Vec<String> = match (&args.filter[..], args.smoke) {
        ([], true) => ["--exact"].iter().chain(SMOKE).map(ToString::to_string).collect(),
        ([], false) => CHOSEN.iter().map(ToString::to_string).collect(),
        (filter, _) => filter.to_vec(),
    };
    let quoted: Vec<_> = chosen.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
    let scenarios = format!("{} --test-threads=2 {}", programs.scenarios.display(), quoted.join(" "));
    let mut steps = vec![programs.verify.display().to_string()];
    if args.filter.is_empty() && !args.smoke {
        steps.push(format!("{} datapath::", programs.library.display()));
    }
    steps.push(scenarios);
    let steps: String =
        steps.iter().map(|step| format!("echo '+ {}'; {step} || bad=1\n", step.replace('\'', ""))).collect();
    // A fraction of the cases: the machine is some twenty times slower than this one.
    format!(
        "bad=0; export PROPTEST_CASES=16 RUST_BACKTRACE=1; cd '{}'\n{steps}exit $bad\n",
        package().display()
    )
}

/// Where cargo runs the tests.
fn package() -> PathBuf {
    crate::workspace().join("tproxy-user")
}

/// Where kernels are kept, and what a machine leaves. It goes with `cargo clean`.
fn directory() -> Result<PathBuf> {
    let directory = crate::workspace().join("target/vm");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    Ok(directory.canonicalize()?)
}
