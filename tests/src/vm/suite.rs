//! Runs cases on virtual machines: boots a machine for each suite, runs its cases in order, and reports as `cargo test` does.

use super::{Bench, Kernel, VmLab, VmLabOptions, kernel_table::Findings};
use crate::lab::{Hook, Result};
use anyhow::{Context as _, anyhow, ensure};
use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Cases that share a machine.
#[derive(Debug)]
pub struct Suite {
    pub layer: &'static str,
    pub kernel: Kernel,
    pub options: VmLabOptions,
    pub cases: Vec<Case>,
}

pub struct Case {
    /// The name without layer and kernel.
    pub name: String,
    run: Box<Run>,
}

type Run = dyn Fn(&mut Trial) -> Result<()> + Send;

/// What a case works with.
#[derive(Debug)]
pub struct Trial<'a> {
    pub lab: VmLab,
    /// Hook of the controller that [`Trial::router`] started.
    hook: Option<Hook>,
    /// Hook under which the router did not come up.
    broken: Option<Hook>,
    /// The run's results for the table of kernels.
    pub findings: &'a Mutex<Findings>,
}

/// The result of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    pub passed: usize,
    /// Names of failed cases.
    pub failed: Vec<String>,
}

impl fmt::Debug for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Case").field(&self.name).finish()
    }
}

impl Case {
    pub fn new(name: impl Into<String>, run: impl Fn(&mut Trial) -> Result<()> + Send + 'static) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

impl Trial<'_> {
    /// Brings the router to this file under this hook; starts the controller if it does not run with them already.
    pub fn router(&mut self, hook: Hook, file: &str) -> Result<()> {
        if self.hook == Some(hook) {
            return Ok(());
        }
        ensure!(self.broken != Some(hook), "the router does not come up under {hook}, as an earlier case reports");
        if self.hook.take().is_some() {
            self.lab.stop()?;
        }
        self.broken = Some(hook);
        self.lab.serve(hook)?;
        self.lab.apply(file)?;
        let attached = self.lab.attached()?;
        let is_right = |(_, at): &(String, String)| *at == hook.to_string();
        ensure!(attached.len() == 2 && attached.iter().all(is_right), "the hook is {hook}, but {attached:?}");
        (self.hook, self.broken) = (Some(hook), None);
        Ok(())
    }

    /// A failure's message, with the guest's status, log and console.
    fn with_details(&self, error: &anyhow::Error) -> String {
        let counted = self.lab.agent().run("vipgate status | grep -E '^(devices|dropped|to stack)'");
        let counted = counted.map_or_else(|error| format!("{error:#}"), |said| said.stdout);
        let (log, console) = (self.lab.log(30), self.lab.machine().console(15));
        format!(
            "{error:#}\n-- vipgate status:\n{counted}-- end of vipgate's log:\n{log}-- end of the guest's console:\n{console}"
        )
    }

    /// Starts the controller again after a case has stopped it.
    pub fn serve_again(&self) -> Result<()> {
        self.lab.serve(self.hook.context("no controller was started before")?)
    }
}

impl Suite {
    /// Full name of a case, such as `load::6.12::tc`.
    #[must_use]
    pub fn full_name(&self, case: &Case) -> String {
        format!("{}::{}::{}", self.layer, self.kernel.name, case.name)
    }

    fn run(&self, bench: &Bench, findings: &Mutex<Findings>, outcome: &Mutex<Outcome>) {
        let (layer, kernel) = (self.layer, &self.kernel.name);
        let lab = match VmLab::new(bench, &self.kernel, &self.options) {
            Ok(lab) => lab,
            Err(error) => {
                let reason = format!("the machine does not come up: {error:#}");
                return self
                    .cases
                    .iter()
                    .for_each(|case| outcome.add(&self.full_name(case), Duration::ZERO, Err(reason.clone())));
            }
        };
        eprintln!("    {layer} on {kernel}: up after {:.1} s", lab.machine().took.as_secs_f64());
        let mut trial = Trial { lab, hook: None, broken: None, findings };
        for case in &self.cases {
            let started = Instant::now();
            let result = trial
                .lab
                .clear_log()
                .and_then(|()| {
                    catch_unwind(AssertUnwindSafe(|| (case.run)(&mut trial)))
                        .unwrap_or_else(|_| Err(anyhow!("it panicked, see above")))
                })
                .map_err(|error| trial.with_details(&error));
            outcome.add(&self.full_name(case), started.elapsed(), result);
        }
    }
}

trait Record {
    fn add(&self, name: &str, took: Duration, result: Result<(), String>);
}

impl Record for Mutex<Outcome> {
    /// Reports a case that has ended, and counts it.
    fn add(&self, name: &str, took: Duration, result: Result<(), String>) {
        let seconds = took.as_secs();
        let mut outcome = self.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => {
                println!("test {name} ... ok ({seconds} s)");
                outcome.passed += 1;
            }
            Err(reason) => {
                println!("test {name} ... FAILED ({seconds} s)");
                // Immediately: the end of the run may be minutes away.
                println!("---- {name}\n{reason}\n----");
                outcome.failed.push(name.to_owned());
            }
        }
    }
}

impl Outcome {
    /// Reports a check that needs no machine.
    pub fn add(&mut self, name: &str, took: Duration, result: Result<()>) {
        let outcome = Mutex::new(std::mem::take(self));
        outcome.add(name, took, result.map_err(|error| format!("{error:#}")));
        *self = outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    }

    /// Prints the end of the output, as libtest does; true if all cases passed.
    #[must_use]
    pub fn conclude(&self, filtered: usize, started: Instant) -> bool {
        if !self.failed.is_empty() {
            println!("\nfailures, reported above:");
            for name in &self.failed {
                println!("    {name}");
            }
        }
        let verdict = if self.failed.is_empty() { "ok" } else { "FAILED" };
        println!(
            "\ntest result: {verdict}. {} passed; {} failed; 0 ignored; 0 measured; {filtered} filtered out; finished in {:.2}s",
            self.passed,
            self.failed.len(),
            started.elapsed().as_secs_f64()
        );
        self.failed.is_empty()
    }
}

/// Runs the suites on at most this many machines at a time.
pub fn run(suites: Vec<Suite>, machines: usize, bench: &Bench) -> (Outcome, Findings) {
    let (outcome, findings) = (Mutex::default(), Mutex::default());
    let queue = Mutex::new(VecDeque::from(suites));
    thread::scope(|scope| {
        for _ in 0..machines {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(suite) = next else { return };
                    suite.run(bench, &findings, &outcome);
                }
            });
        }
    });
    let inner = |outcome: Mutex<Outcome>| outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    (inner(outcome), findings.into_inner().unwrap_or_else(PoisonError::into_inner))
}
