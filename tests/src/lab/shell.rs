//! A user of the `vipgate` command on the router, with a home directory of its own.

use super::{Lab, Result, controller::PASSWORD, vipgate_binary};
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output},
};

#[derive(Clone, Copy, Debug)]
pub struct Shell<'a> {
    pub lab: &'a Lab,
}

impl Shell<'_> {
    /// The directory that holds the session.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.lab.directory().join("state")
    }

    /// A program on the router, with this home directory.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = self.lab.router.command(program.as_ref());
        command.env("XDG_STATE_HOME", self.state());
        command
    }

    pub fn run(&self, words: &[&str]) -> Result<Output> {
        self.command(vipgate_binary()?).args(words).output().context("vipgate does not run")
    }

    /// Runs a command that must succeed; returns its output.
    pub fn says(&self, words: &[&str]) -> Result<String> {
        printed(&format!("{words:?}"), self.run(words)?)
    }

    /// Runs `line`, which has no quotes, as a command that must succeed; returns its output.
    pub fn types(&self, line: &str) -> Result<String> {
        self.says(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// [`Self::types`] with a file as the standard input.
    pub fn types_with(&self, line: &str, input: &Path) -> Result<String> {
        let mut command = self.command(vipgate_binary()?);
        printed(line, command.args(line.split_whitespace()).stdin(File::open(input)?).output()?)
    }

    pub fn json(&self, line: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.types(&format!("{line} --output json"))?)?)
    }

    /// Runs a command that must end with `code` and name each of `said` in its error; returns its output.
    pub fn fails(&self, line: &str, code: i32, said: &[&str]) -> Result<String> {
        let output = self.run(&line.split_whitespace().collect::<Vec<_>>())?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {complaint}");
        for word in said {
            assert!(complaint.contains(word), "`{word}` is missing in the error of {line}: {complaint}");
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The command line that logs the admin in.
    pub fn login(&self) -> Result<String> {
        let password = self.lab.directory().join("password");
        fs::write(&password, format!("{PASSWORD}\n"))?;
        Ok(format!("login --password-file {}", password.display()))
    }
}

fn printed(line: &str, output: Output) -> Result<String> {
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line} ended with {}: {complaint}", output.status);
    ensure!(complaint.is_empty(), "{line} complains: {complaint}");
    Ok(String::from_utf8(output.stdout)?)
}
