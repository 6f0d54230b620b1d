//! The host's side of a guest's agent: sends lines to its shell and receives their results.

use crate::lab::Result;
use anyhow::{Context as _, ensure};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use vipgate_guest::{Hello, Reply, Request};

/// Default timeout for a line. Emulated machines are slow; real ones take moments.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How long the host waits for the reply beyond the guest's own deadline.
const GRACE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Agent {
    channel: Mutex<Channel>,
}

#[derive(Debug)]
struct Channel {
    stream: BufReader<UnixStream>,
    number: u64,
}

/// The result of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineResult {
    /// `None` if it took too long and was killed.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Agent {
    /// Waits for the guest to come up.
    pub(super) fn connect(stream: UnixStream, patience: Duration) -> Result<(Self, Hello)> {
        stream.set_read_timeout(Some(patience)).context("cannot set a timeout")?;
        let mut stream = BufReader::new(stream);
        let hello = read(&mut stream).context("the guest does not come up")?;
        Ok((Self { channel: Mutex::new(Channel { stream, number: 0 }) }, hello))
    }

    /// Waits for the agent of a guest that is starting again.
    pub(super) fn reconnect(&self, patience: Duration) -> Result<Hello> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.stream.get_mut().set_read_timeout(Some(patience)).context("cannot set a timeout")?;
        read(&mut channel.stream)
    }

    /// Runs a shell line in the guest, and returns its result even if it fails.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn run(&self, line: &str) -> Result<LineResult> {
        self.run_with(line, "", PATIENCE)
    }

    /// [`Self::run`] with this standard input; the line is killed after `patience`.
    pub fn run_with(&self, line: &str, stdin: &str, patience: Duration) -> Result<LineResult> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.number += 1;
        let number = channel.number;
        let request =
            Request { number, line: line.to_owned(), stdin: stdin.to_owned(), seconds: patience.as_secs().max(1) };
        let mut bytes = serde_json::to_vec(&request).context("cannot write JSON")?;
        bytes.push(b'\n');
        let stream = channel.stream.get_mut();
        stream.set_read_timeout(Some(patience + GRACE)).context("cannot set a timeout")?;
        stream.write_all(&bytes).context("cannot write to the guest")?;
        let reply: Reply =
            read(&mut channel.stream).with_context(|| format!("the guest does not answer to `{line}`"))?;
        ensure!(reply.number == number, "the guest answers {} instead of {number}", reply.number);
        Ok(LineResult { status: reply.status, stdout: reply.stdout, stderr: reply.stderr })
    }

    /// Runs a line that must succeed; returns its output.
    pub fn says(&self, line: &str) -> Result<String> {
        self.run(line)?.succeeded(line)
    }

    /// Writes a file in the guest.
    pub fn write(&self, path: &str, contents: &str) -> Result<()> {
        let line = format!("mkdir -p \"$(dirname {path})\" && cat > {path}");
        self.run_with(&line, contents, PATIENCE)?.succeeded(&line).map(drop)
    }
}

impl LineResult {
    /// The output, if the line succeeded.
    pub fn succeeded(self, line: &str) -> Result<String> {
        ensure!(self.status == Some(0), "in the guest: `{line}`: {self}");
        Ok(self.stdout)
    }
}

impl std::fmt::Display for LineResult {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.status {
            Some(status) => write!(formatter, "exit status {status}")?,
            None => formatter.write_str("took too long and was killed")?,
        }
        for said in [&self.stdout, &self.stderr] {
            if !said.trim().is_empty() {
                write!(formatter, "; {}", said.trim())?;
            }
        }
        Ok(())
    }
}

fn read<T: serde::de::DeserializeOwned>(stream: &mut BufReader<UnixStream>) -> Result<T> {
    let mut line = String::new();
    let length = stream.read_line(&mut line).context("nothing arrived from its port")?;
    ensure!(length > 0, "its port was closed: the machine has ended");
    serde_json::from_str(&line).with_context(|| format!("not a valid message: {line}"))
}
