//! `cargo xtask test`: installs what the tests need, then runs every test of the workspace and the tests in virtual machines.
//!
//! End-to-end tests make their own namespaces and run side by side. The test binaries run as root, which loading programs and
//! making namespaces need.

use crate::{
    aside::Aside,
    build,
    setup::{self, Need},
    sh::{as_root, cargo, is_root, which},
    vm,
};
use anyhow::{Context as _, Result, bail};
use std::{
    env,
    io::{BufRead as _, BufReader},
    process::{Command, ExitStatus, Stdio},
    time::Instant,
};

/// The seed of the property tests' inputs. It is fixed, so that the outcome depends on the code alone; `cargo test` and
/// `cargo xtask fuzz` try new inputs.
const SEED: &str = "PROPTEST_RNG_SEED";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only the tests whose name contains this.
    #[arg(long)]
    filter: Option<String>,

    /// Number of tests that run at a time.
    #[arg(long, default_value_t = 4)]
    threads: usize,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    setup::ensure(&[Need::Build, Need::Lab, Need::Api])?;
    build::with_tests()?;
    let asides = if args.filter.is_none() { for_machines()? } else { Vec::new() };

    let mut command = cargo(&["test", "--locked", "--workspace", "--no-fail-fast"]);
    if env::var_os(SEED).is_none() {
        command.env(SEED, "1");
    }
    if !is_root() {
        let Some(sudo) = which("sudo") else {
            bail!("the tests make network namespaces and load programs into the kernel: run this command as root");
        };
        command.env(runner_variable(), format!("{} -E", sudo.display()));
    }
    command.arg("--").args(["--test-threads", &args.threads.to_string()]);
    if let Some(filter) = &args.filter {
        command.arg(filter);
    }
    eprintln!("==> all tests of the workspace");
    let mut tally = Tally::default();
    let mut outcomes = vec![("the workspace", run_counting(&mut command, &mut tally))];
    eprintln!("    done in {:.0} s", started.elapsed().as_secs_f64());
    if args.filter.is_none() {
        outcomes.push(("virtual machines", on_machines(asides, &mut tally)));
    } else {
        // They need the optimised package, which takes minutes to build; with a filter the developer wants a quick answer.
        println!("this skips the tests in virtual machines: run them by cargo xtask vm test --filter ...");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if let Some(filter) = args.filter.as_ref().filter(|_| tally == Tally::default()) {
        bail!("no test's name contains `{filter}`");
    }
    for (what, outcome) in outcomes {
        let status = outcome.with_context(|| format!("the tests of {what} did not run"))?;
        if !status.success() {
            bail!("the tests of {what} failed: {status}");
        }
    }
    Ok(())
}

/// Starts in the background what virtual machines need and what takes minutes, while the other tests run.
fn for_machines() -> Result<Vec<Aside>> {
    setup::ensure(&[Need::Vm])?;
    let log = |name: &str| build::target_directory().join(name);
    // By its path: building everything has replaced this program's file by one with the tests' features.
    let mut package = Command::new(build::target_directory().join("debug/xtask"));
    package.arg("package");
    let mut kernels = as_root(&vm::binary(), "keeping kernels where the machines' programs look for them")?;
    kernels.arg("fetch");
    Ok(vec![
        Aside::start("the package", &package, log("package.log"))?,
        Aside::start("kernels of distributions", &kernels, log("kernels.log"))?,
    ])
}

/// Runs the package on distribution kernels.
fn on_machines(asides: Vec<Aside>, tally: &mut Tally) -> Result<ExitStatus> {
    for aside in asides {
        if let Err(error) = aside.finish() {
            // It is done again just below, where a lasting fault is reported.
            eprintln!("    {error:#}");
        }
    }
    let mut command = vm::booting(&vm::binary())?;
    eprintln!("==> the package on distribution kernels");
    let started = Instant::now();
    let status = run_counting(command.arg("test"), tally)?;
    eprintln!("    done in {:.0} s", started.elapsed().as_secs_f64());
    Ok(status)
}

/// Results of all test programs, added up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    /// Adds a test program's last line: `test result: ok. 3 passed; 0 failed; ...`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let words: Vec<&str> = result.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
        let count = |what: &str| {
            let at = words.iter().position(|word| *word == what)?;
            words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
        };
        self.passed += count("passed").unwrap_or_default();
        self.failed += count("failed").unwrap_or_default();
    }
}

/// Runs tests, shows their output as it comes, and counts them.
fn run_counting(command: &mut Command, tally: &mut Tally) -> Result<ExitStatus> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start the tests")?;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("cannot read the tests' output")?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            tally.add(&line);
        }
    }
    child.wait().context("cannot wait for the tests")
}

/// The variable that names the runner cargo starts host programs by.
fn runner_variable() -> String {
    format!("CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER", env::consts::ARCH.to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_test_programs_are_added_up_and_other_lines_are_ignored() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test a ... ok",
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.31s",
            "test result: FAILED. 10 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 9.25s",
        ] {
            tally.add(line);
        }
        assert_eq!(tally, Tally { passed: 12, failed: 1 });
    }
}
