//! What the demo prints: headings, checks that count, and bars that grow while requests are answered.

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _, stdout},
    process::ExitCode,
    time::Instant,
};

const BAR: u64 = 40;

#[derive(Debug)]
pub(crate) struct Screen {
    started: Instant,
    live: bool,
    held: usize,
    failed: Vec<String>,
}

impl Screen {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), live: stdout().is_terminal(), held: 0, failed: Vec::new() }
    }

    pub(crate) fn heading(&self, text: &str) {
        println!("\n[{:5.1} s] {text}", self.started.elapsed().as_secs_f64());
    }

    /// Prints a claim of the demo; a false one makes the demo fail.
    pub(crate) fn check(&mut self, claim: &str, holds: bool) {
        println!("  {} {claim}", if holds { "ok  " } else { "FAIL" });
        if holds {
            self.held += 1;
        } else {
            self.failed.push(claim.to_owned());
        }
    }

    /// Whether bars are drawn while requests are still running.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// Draws one bar for each backend; with `again`, over the bars drawn last, on a live screen.
    pub(crate) fn bars(&self, shares: &BTreeMap<String, u64>, again: bool) {
        if again {
            print!("\x1b[{}A", shares.len());
        }
        let clear = if self.live { "\x1b[2K" } else { "" };
        let total = shares.values().sum::<u64>().max(1);
        let most = shares.values().copied().max().unwrap_or(1).max(1);
        for (name, count) in shares {
            let length = usize::try_from(count * BAR / most).unwrap_or_default();
            let percent = count * 100 / total;
            println!("{clear}  {name:<10} {:<40} {count:>5} {percent:>3} %", "#".repeat(length));
        }
        // The demo cannot do anything about a screen that cannot be written to.
        let _ = stdout().flush();
    }

    /// Prints the last line; returns the exit status.
    pub(crate) fn verdict(&self) -> ExitCode {
        let seconds = self.started.elapsed().as_secs_f64();
        println!("\n{} checks held, {} failed, {seconds:.1} s", self.held, self.failed.len());
        for claim in &self.failed {
            println!("  FAIL {claim}");
        }
        if self.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
