//! A program that runs beside the test, with its words in a file, ended on drop with all that it started.

use super::{Result, wait_until};
use anyhow::{Context as _, anyhow, bail};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, File},
    mem,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

thread_local! {
    /// What the programs have said that this thread has ended, by log.
    static SAID: RefCell<BTreeMap<PathBuf, String>> = const { RefCell::new(BTreeMap::new()) };
}

/// Runs a test; to an error it adds what the test's programs have said, which is printed after a panic as well.
pub fn told(test: impl FnOnce() -> Result<()>) -> Result<()> {
    let outcome = test();
    let said = SAID.take();
    let all = || said.iter().map(|(log, said)| format!("---- {}:\n{said}----\n", log.display())).collect::<String>();
    outcome.map_err(|error| anyhow!("{error:?}\n{}", all()))
}

#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it says goes to the end of `<directory>/<name>.log`. It ends at the latest with the thread
    /// that called this, even if that is killed.
    pub fn start(name: &str, command: &Command, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let errors = file.try_clone().context("cannot clone a file handle")?;
        let child = ending_with_us(command)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All that it has said so far.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its exit status if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot ask after {}", self.name))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits until `probe` gives a value, but not beyond the program's own end.
    pub fn until<T>(&mut self, what: &str, patience: Duration, mut probe: impl FnMut(&Self) -> Result<T>) -> Result<T> {
        wait_until(what, patience, || match self.ended()? {
            Some(status) => Ok(Err(anyhow!("{} ended with {status}: {}", self.name, self.said()))),
            None => probe(self).map(Ok),
        })?
    }

    /// Waits for its end.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        wait_until(&format!("{name} to end"), patience, || match self.ended()? {
            Some(status) => Ok(status),
            None => bail!("it still runs; it said: {}", self.said()),
        })
    }
}

/// The same program, told by setpriv to die with its parent.
fn ending_with_us(command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its workers, too. All of them may have ended by themselves, and then there is nothing left to do.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let _ = self.child.wait();
        let said = self.said();
        if std::thread::panicking() {
            eprintln!("---- {} said:\n{said}----", self.name);
        }
        SAID.with_borrow_mut(|all| all.insert(mem::take(&mut self.log), said));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_what_the_programs_said_that_ended_before_it() {
        let room = tempfile::tempdir().expect("a directory");
        let error = told(|| {
            let mut command = Command::new("sh");
            Process::start("speaker", command.args(["-c", "echo how it was"]), room.path())?
                .wait(Duration::from_secs(20))?;
            bail!("it is not as it should be")
        });
        let error = format!("{:?}", error.expect_err("what the test gave"));
        assert!(
            error.starts_with("it is not as it should be") && error.contains("speaker.log:\nhow it was\n"),
            "{error}"
        );
    }
}
