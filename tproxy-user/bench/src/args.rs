//! The flags of `tproxy bench`.

use std::path::PathBuf;

use super::{contender::Contender, pace::Pace, workload::Workload};

/// `tproxy bench`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show the programs and workloads that are needed, found and missing, and measure nothing
    #[arg(long)]
    pub(super) list: bool,
    /// Fewer and shorter rounds, fewer contenders: under five minutes, and good for a first impression only
    #[arg(long)]
    quick: bool,
    /// How often everything is measured (default: 5; with --quick 3)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Contenders beside plain forwarding (default: all), such as sk_lookup/client, or haproxy for both of its sources
    #[arg(long, value_name = "CONTENDER", value_delimiter = ',')]
    only: Vec<String>,
    /// What to measure (default: everything)
    #[arg(long, value_name = "WORKLOAD", value_delimiter = ',')]
    workload: Vec<Workload>,
    /// Write all samples to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Write a page with plots and an account of the method to this file
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
}

/// What is to be measured.
#[derive(Debug)]
pub(super) struct Plan {
    /// Plain forwarding first.
    pub(super) contenders: Vec<Contender>,
    /// The names that chose them; none: the usual ones.
    pub(super) only: Vec<String>,
    pub(super) workloads: Vec<Workload>,
    pub(super) pace: Pace,
}

impl Args {
    pub(super) fn plan(&self) -> anyhow::Result<Plan> {
        let mut pace = if self.quick { Pace::QUICK } else { Pace::FULL };
        pace.rounds = self.rounds.map_or(pace.rounds, usize::from);
        let workloads = if self.workload.is_empty() { pace.workloads() } else { self.workload.clone() };
        Ok(Plan { contenders: self.contenders(pace)?, only: self.only.clone(), workloads, pace })
    }

    fn contenders(&self, pace: Pace) -> anyhow::Result<Vec<Contender>> {
        if self.only.is_empty() {
            return Ok(pace.contenders());
        }
        let mut chosen = vec![Contender::Plain];
        for name in &self.only {
            let named: Vec<_> = Contender::all().filter(|contender| contender.is_called(name)).collect();
            anyhow::ensure!(
                !named.is_empty(),
                "there is no contender '{name}': `tproxy bench --list` shows those that there are"
            );
            chosen.extend(named.into_iter().filter(|contender| *contender != Contender::Plain));
        }
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn plan(flags: &str) -> anyhow::Result<Plan> {
        let words = ["bench"].into_iter().chain(flags.split_whitespace());
        Command::try_parse_from(words)?.args.plan()
    }

    #[test]
    fn plain_forwarding_is_always_measured_and_comes_first() {
        let chosen = plan("--only haproxy,plain,sk_lookup/client --workload rules-64").unwrap();
        let names: Vec<_> = chosen.contenders.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["plain", "haproxy/host", "haproxy/client", "sk_lookup/client"]);
        assert_eq!(chosen.workloads, [Workload::Rules64]);
        assert_eq!((chosen.pace.name, chosen.pace.rounds), ("full", 5));
    }

    #[test]
    fn quick_is_less_of_everything() {
        let (quick, full) = (plan("--quick").unwrap(), plan("").unwrap());
        assert!(quick.contenders.len() < full.contenders.len());
        assert!(quick.workloads.len() < full.workloads.len());
        assert!(quick.pace.rounds < full.pace.rounds && quick.pace.span < full.pace.span);
        assert_eq!(plan("--quick --rounds 7").unwrap().pace.rounds, 7);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(plan("--only squid").unwrap_err().to_string().contains("'squid'"));
        assert!(plan("--workload tea").unwrap_err().to_string().contains("connections"));
        assert!(plan("--rounds 0").is_err());
    }
}
