//! `cargo xtask mutants`: checks that the tests notice faults in the packet path.
//!
//! `ebpf/faults.toml` lists small edits of the sources, each a fault that a developer could make. Each is put into a copy of
//! the tree, and layers of tests run there, cheapest first, until one fails: the fault is noticed. A fault that no layer
//! notices survives: a test is missing, or the table says why no test can notice it.
//!
//! Pure code with tests beside it is left to cargo-mutants (`--pure`), which makes faults itself.

mod copy;
mod faults;
mod layers;
mod test_run;

use self::{
    copy::Sources,
    faults::{Fault, TABLE},
    layers::{Layer, Noticed},
};
use crate::{
    build,
    setup::{self, Need},
    sh::{cargo, root, run as run_command},
};
use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use serde::Serialize;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only the faults whose name contains this; may be given more than once.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,

    /// Output format: a line for each fault as it is examined, or one JSON document at the end.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,

    /// Let cargo-mutants make faults in the tables' pure code, instead of using the table.
    #[arg(long, conflicts_with_all = ["only", "output"])]
    pure: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// What happened to a fault.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    name: &'a str,
    file: &'a str,
    why: &'a str,
    noticed: Option<Noticed>,
    /// The table's reason why no test can notice it.
    survives: Option<&'a str>,
    seconds: u64,
}

impl Outcome<'_> {
    /// Whether the fault was noticed, or survived as the table expects.
    fn fits(&self) -> bool {
        self.noticed.is_some() == self.survives.is_none()
    }

    fn words(&self) -> String {
        let fate = match (&self.noticed, self.survives) {
            (Some(noticed), None) => format!("{}: {}", noticed.layer, noticed.test),
            (Some(noticed), Some(_)) => {
                format!("NOTICED by {}: {}, though it should survive", noticed.layer, noticed.test)
            }
            (None, Some(why)) => format!("survives: {why}"),
            (None, None) => format!("SURVIVES, though it {}", self.why),
        };
        format!("{:<56} {:>4} s  {fate}", self.name, self.seconds)
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.pure {
        return pure();
    }
    setup::ensure(&[Need::Build, Need::Lab])?;
    let faults = faults::read(&root())?;
    let chosen = |fault: &&Fault| args.only.is_empty() || args.only.iter().any(|name| fault.name.contains(name));
    let faults: Vec<&Fault> = faults.iter().filter(chosen).collect();
    ensure!(!faults.is_empty(), "no fault in {TABLE} has such a name");

    let sources = Sources::make()?;
    let layers = layers::all(sources.tree())?;
    eprintln!("==> every layer, without a fault");
    if let Some(Noticed { layer, test }) = examine(&layers, None)? {
        bail!("without any fault, {test} of {layer} fails: fix that first");
    }
    let mut outcomes = Vec::new();
    for (at, fault) in (1..).zip(&faults) {
        let started = Instant::now();
        eprintln!("==> {at} of {}: {}", faults.len(), fault.name);
        let noticed = sources.with(fault, || examine(&layers, Some(fault)));
        let outcome = Outcome {
            name: &fault.name,
            file: &fault.file,
            why: &fault.why,
            noticed: noticed.with_context(|| format!("the fault `{}`", fault.name))?,
            survives: fault.survives.as_deref(),
            seconds: started.elapsed().as_secs(),
        };
        if args.output == Output::Text {
            println!("{}", outcome.words());
        }
        outcomes.push(outcome);
    }
    if args.output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&outcomes)?);
    }
    let wrong: Vec<&str> = outcomes.iter().filter(|outcome| !outcome.fits()).map(|outcome| outcome.name).collect();
    ensure!(wrong.is_empty(), "these are not as {TABLE} expects: {}", wrong.join(", "));
    Ok(())
}

/// The first failing layer among those that can notice the fault.
fn examine(layers: &[Layer], fault: Option<&Fault>) -> Result<Option<Noticed>> {
    for layer in layers.iter().filter(|layer| fault.is_none_or(|fault| layer.sees(&fault.file))) {
        let started = Instant::now();
        let test = layer.first_failure()?;
        let fate = if test.is_some() { "a test fails" } else { "all pass" };
        eprintln!("    {}: {fate} ({:.0} s)", layer.name, started.elapsed().as_secs_f64());
        if let Some(test) = test {
            return Ok(Some(Noticed { layer: layer.name, test }));
        }
    }
    Ok(None)
}

/// Runs cargo-mutants on arithmetic without I/O, which has its tests beside it.
fn pure() -> Result<()> {
    setup::ensure(&[Need::Build, Need::Mutants])?;
    let mut command =
        cargo(&["mutants", "--package", "vipgate-abi", "--baseline", "skip", "--timeout", "60", "--output"]);
    command.arg(build::target_directory()).args(["--", "--lib"]);
    run_command(&mut command).context("mutants survive: the list is in target/mutants.out/missed.txt")
}
