//! A step that runs in the background at the lowest priority, while other steps run.

use crate::sh::shown;
use anyhow::{Context as _, Result, bail};
use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// Its output goes to a file, which is shown if it fails.
#[derive(Debug)]
pub(crate) struct Aside {
    what: &'static str,
    command: String,
    child: Child,
    log: PathBuf,
}

impl Aside {
    /// Starts it at the lowest priority.
    pub(crate) fn start(what: &'static str, command: &Command, log: PathBuf) -> Result<Self> {
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let errors = file.try_clone().context("cannot clone a file handle")?;
        let mut nice = Command::new("nice");
        nice.args(["-n", "19"]).arg(command.get_program()).args(command.get_args());
        nice.stdin(Stdio::null()).stdout(file).stderr(errors);
        let child = nice.spawn().with_context(|| format!("cannot start {}", shown(&nice)))?;
        eprintln!("==> beside what follows: {what} (its words: {})", log.display());
        Ok(Self { what, command: shown(command), child, log })
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> Result<()> {
        let status = self.child.wait().with_context(|| format!("cannot wait for {}", self.what))?;
        if !status.success() {
            bail!("{status}: {}\n{}", self.command, fs::read_to_string(&self.log).unwrap_or_default());
        }
        Ok(())
    }
}

impl Drop for Aside {
    /// It does not outlive the command that started it.
    fn drop(&mut self) {
        // It fails for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
