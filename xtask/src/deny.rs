//! What the crates that we depend on may be, by `deny.toml`: their licences, bans, sources, and known vulnerabilities
//! (advisories).
//!
//! Advisories are in a database on the network, which lint must not depend on. So it is fetched as a step of its own, and looked
//! at only if that worked: an advisory about one of our crates fails lint, a database out of reach does not.

use crate::sh::{root, step, which};
use anyhow::{Context as _, Result};
use std::{
    path::Path,
    process::{Command, Output},
};

/// Seconds until the database counts as out of reach.
const PATIENCE: &str = "20";
/// The exit status of timeout(1) when they are over.
const OVER: i32 = 124;
const CHECKS: [&str; 4] = ["licenses", "bans", "sources", "advisories"];

pub(crate) fn check() -> Result<()> {
    if which("cargo-deny").is_none() {
        eprintln!("==> dependencies: skipped, cargo-deny is not installed (cargo install cargo-deny --locked)");
        return Ok(());
    }
    let problem = problem(&fetch_advisories()?);
    if let Some(problem) = &problem {
        eprintln!("==> advisories: not checked, their database cannot be fetched: {problem}");
    }
    let checks = checks(problem.as_deref());
    for directory in [root(), root().join("ebpf")] {
        // A build leaves out crates of features that it does not need. Without the network this does nothing if all are there.
        step("the crates' sources", deny("cargo", &[], &directory).args(["--locked", "fetch", "index"]))?;
        let what = format!("{} of {}", checks.join(", "), directory.display());
        step(&what, deny("cargo", &[], &directory).args(["--locked", "--offline", "check"]).args(checks))?;
    }
    Ok(())
}

fn fetch_advisories() -> Result<Output> {
    eprintln!("==> the database of advisories");
    // It ends git, too, which cargo-deny runs.
    let mut fetch = deny("timeout", &[PATIENCE, "cargo"], &root());
    fetch.args(["fetch", "db"]).env("GIT_TERMINAL_PROMPT", "0").output().context("cannot start timeout")
}

/// `cargo deny` in a directory, run by `program`, whose own arguments come first.
fn deny(program: &str, arguments: &[&str], directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).args(arguments).args(["deny", "--config"]).arg(root().join("deny.toml"));
    command
}

/// Why the database could not be fetched; `None` if it was.
fn problem(fetch: &Output) -> Option<String> {
    if fetch.status.success() {
        return None;
    }
    if fetch.status.code() == Some(OVER) {
        return Some(format!("no answer within {PATIENCE} s"));
    }
    let told = String::from_utf8_lossy(&fetch.stderr);
    // Its last line is git's own reason.
    Some(told.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given").trim().to_owned())
}

/// What is checked, given why there are no advisories.
fn checks(problem: Option<&str>) -> &'static [&'static str] {
    if problem.is_none() { &CHECKS } else { &CHECKS[..3] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

    fn ended(code: i32, stderr: &str) -> Output {
        Output { status: ExitStatus::from_raw(code << 8), stdout: Vec::new(), stderr: stderr.into() }
    }

    #[test]
    fn advisories_are_checked_if_their_database_was_fetched() {
        assert_eq!(problem(&ended(0, "warning: slow")), None);
        assert_eq!(checks(None), ["licenses", "bans", "sources", "advisories"]);
    }

    #[test]
    fn a_database_out_of_reach_is_reported_and_no_failure() {
        let told = "[ERROR] failed to fetch database: failed to clone\n\
                    Cloning into 'advisory-db'...\n\
                    fatal: unable to access 'https://github.com/': Could not resolve host: github.com\n\n";
        let reason = problem(&ended(1, told)).unwrap();
        assert_eq!(reason, "fatal: unable to access 'https://github.com/': Could not resolve host: github.com");
        assert_eq!(problem(&ended(OVER, "")).unwrap(), "no answer within 20 s");
        assert_eq!(problem(&ended(1, "")).unwrap(), "no reason given");
        assert_eq!(checks(Some(&reason)), ["licenses", "bans", "sources"]);
    }
}
