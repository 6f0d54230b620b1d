//! A network namespace: created with iproute2, entered by threads, removed on drop.

use super::{
    Result,
    leftovers::{NAMESPACES, sweep},
};
use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, setns};
use std::{
    ffi::OsStr,
    fs::{self, File},
    path::PathBuf,
    process::Command,
    thread,
};

#[derive(Debug)]
pub struct Namespace {
    name: String,
    handle: File,
}

impl Namespace {
    /// Creates a namespace with loopback up and IPv6 off: IPv6's own traffic would disturb counters.
    pub fn new(name: String) -> Result<Self> {
        sweep();
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let path = PathBuf::from(NAMESPACES).join(&name);
        let handle = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let namespace = Self { name, handle };
        namespace.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
        namespace.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Path of the namespace's file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(NAMESPACES).join(&self.name)
    }

    /// Runs `work` on a thread inside the namespace. Sockets that it opens stay in the namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.handle, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {}", self.name))?;
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread that lives in the namespace.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T>>> {
        let handle = self.handle.try_clone().context("cannot clone a namespace's handle")?;
        let name = self.name.clone();
        Ok(thread::spawn(move || {
            setns(&handle, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {name}"))?;
            Ok(work())
        }))
    }

    /// `program` inside the namespace. Unlike `ip netns exec`, this leaves /sys as it is, so that bpffs stays visible.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs `ip` with these arguments inside the namespace; returns its output.
    pub fn ip(&self, words: &str) -> Result<String> {
        run(Command::new("ip").args(["-n", &self.name]).args(words.split_whitespace()))
    }

    /// Runs `program` with these arguments to its end; returns its output.
    pub fn run(&self, program: &str, words: &str) -> Result<String> {
        run(self.command(program).args(words.split_whitespace()))
    }

    /// Sets `/proc/sys/<key>` of the namespace.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.within(|| fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}")))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("lab: {error:#}");
        }
    }
}

/// Runs `command` to its end; returns its output, or an error with all that it printed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
        bail!("{command:?}: {}: {}", output.status, said.join(" "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
