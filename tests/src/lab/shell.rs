//! Who types `vipgate` on the router, with a home of its own.

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
    /// Where the session is kept.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.lab.directory().join("state")
    }

    /// A program of the router, in this home.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = self.lab.router.command(program.as_ref());
        command.env("XDG_STATE_HOME", self.state());
        command
    }

    pub fn run(&self, words: &[&str]) -> Result<Output> {
        self.command(vipgate_binary()?).args(words).output().context("vipgate does not run")
    }

    /// What a command that succeeds prints.
    pub fn says(&self, words: &[&str]) -> Result<String> {
        printed(&format!("{words:?}"), self.run(words)?)
    }

    /// The words of `line`, which has no quotes.
    pub fn types(&self, line: &str) -> Result<String> {
        self.says(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// The same with a file as the standard input.
    pub fn types_with(&self, line: &str, input: &Path) -> Result<String> {
        let mut command = self.command(vipgate_binary()?);
        printed(line, command.args(line.split_whitespace()).stdin(File::open(input)?).output()?)
    }

    pub fn json(&self, line: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.types(&format!("{line} --output json"))?)?)
    }

    /// A command that must end with `code` and say each of `said`; what it prints.
    pub fn fails(&self, line: &str, code: i32, said: &[&str]) -> Result<String> {
        let output = self.run(&line.split_whitespace().collect::<Vec<_>>())?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {complaint}");
        for word in said {
            assert!(complaint.contains(word), "{line} does not say `{word}`: {complaint}");
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The line that logs the admin in.
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
