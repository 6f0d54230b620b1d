//! The agent: runs the host's requests one after another, each a line for the shell.
//!
//! Output goes to files first. So a program that a line leaves running in the background cannot hold up the reply, which it
//! could if it held the other end of a pipe.

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};
use vipgate_guest::{Hello, LONGEST, PORT, Reply, Request};

/// How long the port may take to appear once its driver is there.
const APPEARS: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

/// Answers requests until the host has gone.
pub(crate) fn serve(complaints: Vec<String>) -> Result<()> {
    let mut port = File::options().read(true).write(true).open(port()?).context("cannot open the port")?;
    let mut requests = BufReader::new(port.try_clone().context("cannot clone the port's handle")?);
    send(&mut port, &hello(complaints)?)?;
    let mut line = String::new();
    loop {
        line.clear();
        if requests.read_line(&mut line).context("cannot read the port")? == 0 {
            return Ok(());
        }
        let request: Request = serde_json::from_str(&line).with_context(|| format!("no request: {line}"))?;
        let reply = carry_out(&request).unwrap_or_else(|error| Reply {
            number: request.number,
            status: Some(127),
            stdout: String::new(),
            stderr: format!("agent: {error:#}"),
        });
        send(&mut port, &reply)?;
    }
}

fn hello(complaints: Vec<String>) -> Result<Hello> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's name")?;
    let uptime = fs::read_to_string("/proc/uptime").context("cannot read the uptime")?;
    let seconds: f64 = uptime.split(' ').next().unwrap_or_default().parse().context("no uptime")?;
    let milliseconds = Duration::from_secs_f64(seconds).as_millis().try_into().unwrap_or(u64::MAX);
    Ok(Hello { kernel: kernel.trim().to_owned(), milliseconds, complaints })
}

fn send(port: &mut File, message: &impl serde::Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(message).context("cannot write JSON")?;
    line.push(b'\n');
    port.write_all(&line).context("cannot write to the port")
}

/// Finds the port's device by its name: there may be other ports.
fn port() -> Result<PathBuf> {
    let deadline = Instant::now() + APPEARS;
    loop {
        let ports = fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten();
        for port in ports {
            let is_ours = fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim() == PORT);
            let device = Path::new("/dev").join(port.file_name());
            if is_ours && device.exists() {
                return Ok(device);
            }
        }
        if Instant::now() > deadline {
            bail!("no virtio-serial port `{PORT}` here: is virtio_console loaded?");
        }
        thread::sleep(PAUSE);
    }
}

fn carry_out(request: &Request) -> Result<Reply> {
    let (mut stdin, mut stdout, mut stderr) = (scratch("in")?, scratch("out")?, scratch("err")?);
    stdin.write_all(request.stdin.as_bytes()).context("cannot write the input")?;
    stdin.rewind().context("cannot rewind the input")?;
    let clone = |file: &File| file.try_clone().context("cannot clone a file handle");
    let mut child = Command::new("/bin/sh")
        .args(["-c", &request.line])
        .stdin(stdin)
        .stdout(clone(&stdout)?)
        .stderr(clone(&stderr)?)
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .process_group(0)
        .spawn()
        .context("cannot start the shell")?;
    let status = finish(&mut child, Duration::from_secs(request.seconds))?;
    Ok(Reply {
        number: request.number,
        status: status.map(|status| status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())),
        stdout: contents(&mut stdout)?,
        stderr: contents(&mut stderr)?,
    })
}

/// Waits for the shell's end; `None` if it had to be killed.
fn finish(child: &mut Child, patience: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the shell")? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            // It may just have ended by itself.
            let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
            child.wait().context("cannot wait for the shell")?;
            return Ok(None);
        }
        thread::sleep(PAUSE);
    }
}

/// An empty file under a name that is used again for the next request; a program that still runs keeps the old file.
fn scratch(name: &str) -> Result<File> {
    let path = Path::new("/run").join(format!("agent-{name}"));
    if path.exists() {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let mut options = File::options();
    let options = options.read(true).append(true).create_new(true);
    options.open(&path).with_context(|| format!("cannot make {}", path.display()))
}

fn contents(file: &mut File) -> Result<String> {
    file.rewind().context("cannot rewind an output")?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(LONGEST).unwrap_or(u64::MAX);
    file.take(limit).read_to_end(&mut bytes).context("cannot read an output")?;
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if bytes.len() == LONGEST {
        text.push_str("\n(agent: the rest is cut off)\n");
    }
    Ok(text)
}
