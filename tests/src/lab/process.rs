//! A background program whose output goes to a file. Dropping it ends it with all that it started.

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
    time::{Duration, Instant},
};

/// How many times `patience` a program that works is waited for.
const LONGER: u32 = 10;
/// A program works if it gets at least this fraction (1/LITTLE) of a processor, which even a busy machine leaves it.
const LITTLE: u32 = 200;

thread_local! {
    /// Output of this thread's ended programs, by log file.
    static SAID: RefCell<BTreeMap<PathBuf, String>> = const { RefCell::new(BTreeMap::new()) };
}

/// Runs a test. To its error it adds the output of the test's programs, which is printed after a panic, too.
pub fn with_program_output(test: impl FnOnce() -> Result<()>) -> Result<()> {
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
    /// Starts `command`; its output is appended to `<directory>/<name>.log`. It ends at the latest with the calling thread,
    /// even if that is killed.
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

    /// Its output so far.
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

    /// Waits until `probe` succeeds; fails if the program ends first.
    pub fn until<T>(&mut self, what: &str, patience: Duration, mut probe: impl FnMut(&Self) -> Result<T>) -> Result<T> {
        self.while_it_works(what, patience, |process| match process.ended()? {
            Some(status) => Ok(Err(anyhow!("{} ended with {status}: {}", process.name, process.said()))),
            None => probe(process).map(Ok),
        })?
    }

    /// Waits for its end.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.while_it_works(&format!("{} to end", self.name), patience, |process| match process.ended()? {
            Some(status) => Ok(status),
            None => bail!("it still runs; its output: {}", process.said()),
        })
    }

    /// Waits until `probe` succeeds. `patience` is for an idle program; one that works gets [`LONGER`] times as long, since the
    /// machine may be busy.
    fn while_it_works<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut probe: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let (mut since, mut worked) = (Instant::now(), self.worked());
        wait_until(what, patience * LONGER, || {
            let error = match probe(self) {
                Ok(value) => return Ok(Ok(value)),
                Err(error) => error,
            };
            let now = self.worked();
            if now >= worked + patience / LITTLE {
                (since, worked) = (Instant::now(), now);
            } else if since.elapsed() > patience {
                let name = &self.name;
                return Ok(Err(anyhow!("{name} was idle for {patience:?} while waiting for {what}: {error:#}")));
            }
            Err(error.context(format!("it has worked for {now:?}")))
        })?
    }

    /// Processor time that it has used, including its ended threads; 0 once it has ended.
    fn worked(&self) -> Duration {
        /// The kernel reports hundredths of seconds to programs, whatever its own tick is.
        const TICK: Duration = Duration::from_millis(10);
        let status = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // The program's name is in brackets and may contain anything. The 3rd field follows; the 14th and 15th are times.
        let fields = status.rsplit(") ").next().unwrap_or_default().split(' ');
        TICK * fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u32>().ok()).sum()
    }
}

/// The same program, started through setpriv so that it dies with its parent.
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
        // Kills its child processes, too. All may have ended by themselves.
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
    fn a_program_that_works_is_waited_for_and_one_that_does_nothing_is_not() {
        let room = tempfile::tempdir().expect("a directory");
        let patience = Duration::from_millis(500);
        let wait = |script: &str| {
            let mut command = Command::new("bash");
            Process::start("worker", command.args(["-c", script]), room.path())?.wait(patience)
        };
        assert!(wait("while (( SECONDS < 2 )); do :; done").expect("it works all the time").success());
        let error = wait("sleep 600").expect_err("it waits for something");
        assert!(format!("{error:#}").contains("worker was idle"), "{error:#}");
    }

    #[test]
    fn an_error_holds_the_output_of_programs_that_ended_before_it() {
        let room = tempfile::tempdir().expect("a directory");
        let error = with_program_output(|| {
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
