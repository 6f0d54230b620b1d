//! Runs the tests in virtual machines.

use std::time::{Duration, Instant};
use vipgate_tests::{
    lab::Result,
    vm::{
        Bench,
        accel::Accelerator,
        archive,
        image::Sources,
        kernels,
        lab::System,
        layers::{self, Extent},
        suite::{self, Suite},
        userland,
    },
};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Test only this kernel, by the name that `cargo xtask vm list` shows; may be given more than once.
    #[arg(long, value_name = "NAME", value_parser = kernels::known)]
    kernel: Vec<String>,

    /// Also run what `cargo xtask test` leaves out for time.
    #[arg(long, conflicts_with = "kernel")]
    all: bool,

    /// Run only the tests whose name contains this, out of all tests.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,

    /// Number of machines that run at a time.
    #[arg(long, default_value_t = 2)]
    machines: usize,

    /// Write docs/kernels.md from the results.
    #[arg(long)]
    write: bool,
}

/// The table in `docs/kernels.md`, which the results are compared with.
const TABLE: &str = "load::table";

/// Returns true if all tests passed.
pub(crate) fn run(arguments: &Arguments, sources: Sources) -> Result<bool> {
    let started = Instant::now();
    let kernels = kernels::named(&arguments.kernel)?;
    let extent = match (arguments.all || arguments.filter.is_some(), arguments.kernel.is_empty()) {
        (_, false) => Extent::Named,
        (true, true) => Extent::All,
        (false, true) => Extent::Usual,
    };
    let mut suites = layers::suites(&kernels, extent);
    let filtered = arguments.filter.as_ref().map_or(0, |filter| keep(&mut suites, filter));
    for suite in &suites {
        let files = archive::fetch(&suite.kernel)?;
        if suite.options.system == System::Debian {
            userland::disk(&suite.kernel, &files)?;
        }
    }
    let count: usize = suites.iter().map(|suite| suite.cases.len()).sum();
    println!("\nrunning {count} tests");
    let Some(first) = suites.first() else {
        return Ok(suite::Outcome::default().conclude(filtered, started));
    };
    let accelerator = Accelerator::detect(&sources, &first.kernel)?;
    eprintln!("==> suites: {}, machines at a time: {}, {accelerator}", suites.len(), arguments.machines);
    let bench = Bench { sources, accelerator };
    let (mut outcome, findings) = suite::run(suites, arguments.machines, &bench);
    if !findings.is_empty() {
        println!("\n{}", findings.over_committed()?.page()?);
        if arguments.write {
            findings.write()?;
        }
        outcome.add(TABLE, Duration::ZERO, findings.check());
    }
    Ok(outcome.conclude(filtered, started))
}

/// Keeps only cases whose names contain `filter`; returns how many were removed.
fn keep(suites: &mut Vec<Suite>, filter: &str) -> usize {
    let count = |suites: &[Suite]| suites.iter().map(|suite| suite.cases.len()).sum::<usize>();
    let before = count(suites);
    for suite in suites.iter_mut() {
        let (layer, kernel) = (suite.layer, suite.kernel.name.clone());
        suite.cases.retain(|case| format!("{layer}::{kernel}::{}", case.name).contains(filter));
    }
    suites.retain(|suite| !suite.cases.is_empty());
    before - count(suites)
}
