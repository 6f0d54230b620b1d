//! Runs a test program until one of its tests fails.

use crate::sh::shown;
use anyhow::{Context as _, Result};
use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// Fixed inputs for property tests, so that each run notices what the last one did, and no shrinking of failing inputs.
const SETTINGS: [(&str, &str); 3] =
    [("PROPTEST_RNG_SEED", "1"), ("PROPTEST_MAX_SHRINK_ITERS", "0"), ("RUST_BACKTRACE", "0")];

/// A test program, and the directory that cargo would run it in.
#[derive(Debug)]
pub(super) struct Binary {
    path: PathBuf,
    tree: PathBuf,
}

impl Binary {
    /// The program that cargo reports: `Executable tests/packets/main.rs (target/debug/deps/packets-0123456789abcdef)`.
    pub(super) fn named_by(output: &str, tree: &Path) -> Result<Self> {
        let named = |line: &str| Some(line.trim().strip_prefix("Executable")?.rsplit_once('(')?.1.to_owned());
        let path = output.lines().rev().find_map(named).context("cargo does not report where the test program is")?;
        Ok(Self { path: tree.join(path.trim_end_matches(')')), tree: tree.to_owned() })
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.current_dir(&self.tree);
        command
    }
}

/// Killed on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // This fails for a process that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The first test of a program that fails; `None` if all pass.
pub(super) fn first_failure(command: &mut Command, patience: Duration) -> Result<Option<String>> {
    let deadline = Instant::now() + patience;
    let command = command.envs(SETTINGS).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let child = command.spawn().with_context(|| format!("cannot start {}", shown(command)))?;
    let mut running = Running(child);
    let output = BufReader::new(running.0.stdout.take().context("its output is a pipe")?);
    let (send, lines) = mpsc::channel();
    // The reader ends with the program whose output it reads.
    thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if let Some(test) = failed(&line) {
                    return Ok(Some(test.to_owned()));
                }
            }
            Err(RecvTimeoutError::Timeout) => return Ok(Some(format!("it runs for more than {patience:?}"))),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = running.0.wait().context("cannot wait for the tests")?;
    Ok((!status.success()).then(|| status.to_string()))
}

/// The name of the test, if the line reports a failed one.
fn failed(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_first_test_that_fails_ends_the_run() -> Result<()> {
        let script = "echo 'test a ... ok'; echo 'test b::xdp ... FAILED'; sleep 60";
        assert_eq!(first_failure(&mut shell(script), 30 * SECOND)?.as_deref(), Some("b::xdp"));
        assert_eq!(first_failure(&mut shell("echo 'test a ... ok'"), 30 * SECOND)?, None);
        Ok(())
    }

    #[test]
    fn tests_that_die_or_hang_have_failed() -> Result<()> {
        assert!(first_failure(&mut shell("kill -SEGV $$"), 30 * SECOND)?.is_some());
        assert!(first_failure(&mut shell("exec sleep 60"), SECOND / 10)?.is_some());
        Ok(())
    }

    #[test]
    fn cargo_reports_where_a_test_program_is() -> Result<()> {
        let output = "   Compiling a v0.1.0\n  Executable tests/races.rs (target/debug/deps/races-01)\n";
        assert_eq!(Binary::named_by(output, Path::new("/tree"))?.path, Path::new("/tree/target/debug/deps/races-01"));
        Ok(())
    }
}
