//! `vipgate serve` in the router's namespace, as a router's init system would run it.

use std::{
    env, fs,
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::{Command, ExitStatus, Output},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use vipgate_agent::loader::Sizes;

use super::{Api, Lab, Namespace, Process, Result, leftovers::next_number};

/// Where the API listens, in the router's namespace.
pub const LISTEN: &str = "127.0.0.1:8080";
/// The admin's first password.
pub const PASSWORD: &str = "lab-password";

/// The tables of a lab's controller. That of flows begins with a quarter.
pub const SIZES: Sizes = Sizes { flows: 262_144, services: 1024, backends: 1024, ring_elements: 1 << 20 };

/// Loading the programs and the first pass over the stored state: most of it is the kernel's verification of the programs, three
/// times where the flow table gets another size.
const READY: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Controller {
    process: Process,
}

impl Lab {
    /// Runs `vipgate` with these words in the router's namespace, to its end.
    pub fn vipgate(&self, words: &str) -> Result<Output> {
        let mut command = self.router.command(vipgate_binary()?);
        command.env("VIPGATE_BPFFS", self.bpffs.path()).env("VIPGATE_HOOK", self.hook.to_string());
        command.args(words.split_whitespace()).output().context("vipgate starts")
    }
}

impl Controller {
    /// Starts it with the lab's store and pins, and waits until it tells that it is ready, as systemd would.
    pub fn start(lab: &Lab, arguments: &[&str]) -> Result<Self> {
        Self::launch(lab, serve(lab, &[])?.args(arguments))
    }

    /// The same, started by another program: `wrapper` is its name and its own arguments.
    pub fn start_as(lab: &Lab, wrapper: &[&str]) -> Result<Self> {
        Self::launch(lab, &mut serve(lab, wrapper)?)
    }

    /// [`Controller::start`] with tables of these sizes.
    pub fn start_with(lab: &Lab, sizes: Sizes) -> Result<Self> {
        Self::launch(lab, with_sizes(&mut serve(lab, &[])?, sizes))
    }

    /// Starts one with tables of these sizes, and kills it as soon as `when` says so, or when it has started.
    pub fn start_and_kill(lab: &Lab, sizes: Sizes, when: impl Fn() -> bool) -> Result<()> {
        let (path, notifications) = notified(lab)?;
        let mut command = serve(lab, &[])?;
        let command = with_sizes(&mut command, sizes).env("NOTIFY_SOCKET", path);
        let mut process = Process::start("vipgate", command, lab.directory())?;
        let end = Instant::now() + READY;
        while Instant::now() < end && !when() && notifications.recv(&mut [0]).is_err() {
            // Not a wait for something, but the time between two looks: a stage may last some milliseconds.
            std::thread::sleep(Duration::from_micros(200));
        }
        process.signal(Signal::SIGKILL)?;
        process.wait(END)?;
        Ok(())
    }

    fn launch(lab: &Lab, command: &mut Command) -> Result<Self> {
        let (path, notifications) = notified(lab)?;
        let mut process = Process::start("vipgate", command.env("NOTIFY_SOCKET", &path), lab.directory())?;
        process.until("vipgate to be ready", READY, |_| {
            let mut message = [0; 256];
            let length = notifications.recv(&mut message).context("it has told nothing")?;
            anyhow::ensure!(message[..length].starts_with(b"READY=1"), "it has told something else");
            Ok(())
        })?;
        Ok(Self { process })
    }

    /// Starts one that shall fail; how it ended and what it said.
    pub fn start_and_fail(lab: &Lab, arguments: &[&str]) -> Result<(ExitStatus, String)> {
        let mut process = Process::start("vipgate-failing", serve(lab, &[])?.args(arguments), lab.directory())?;
        let status = process.wait(READY)?;
        Ok((status, process.said()))
    }

    /// A client of its API, logged in as admin.
    pub fn api(&self, router: &Namespace) -> Result<Api> {
        Self::stranger(router)?.log_in("admin", PASSWORD)
    }

    /// A client of its API that has not logged in.
    pub fn stranger(router: &Namespace) -> Result<Api> {
        Api::new(router, &format!("http://{LISTEN}"))
    }

    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Bytes of memory that it has in use, as the kernel counts them: the tables that it maps included.
    pub fn resident(&self) -> Result<u64> {
        self.memory("VmRSS")
    }

    /// Bytes of memory that are its own: neither files nor the kernel's tables.
    pub fn own_memory(&self) -> Result<u64> {
        self.memory("RssAnon")
    }

    fn memory(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let value =
            |line: &str| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().trim_end_matches(" kB").parse());
        let kilobytes: u64 = status.lines().find_map(value).context("it has ended")??;
        Ok(kilobytes * 1024)
    }

    /// SIGTERM, as systemd stops a service; its exit status.
    pub fn stop(self) -> Result<ExitStatus> {
        self.stop_by(Signal::SIGTERM)
    }

    pub fn stop_by(mut self, signal: Signal) -> Result<ExitStatus> {
        self.process.signal(signal)?;
        self.process.wait(END)
    }

    /// SIGHUP, as `systemctl reload` does.
    pub fn reload(&self) -> Result<()> {
        self.process.signal(Signal::SIGHUP)
    }

    /// SIGKILL: it gets no chance to do anything.
    pub fn kill(mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait(END)?;
        Ok(())
    }

    /// All that it has said since the lab was made, its predecessors included.
    #[must_use]
    pub fn said(&self) -> String {
        self.process.said()
    }
}

/// Where a controller tells that it is ready, as it would tell systemd, and what reads that.
fn notified(lab: &Lab) -> Result<(PathBuf, UnixDatagram)> {
    let path = lab.directory().join(format!("notify-{}", next_number()));
    let notifications = UnixDatagram::bind(&path).with_context(|| format!("cannot bind {}", path.display()))?;
    notifications.set_nonblocking(true)?;
    Ok((path, notifications))
}

fn with_sizes(command: &mut Command, sizes: Sizes) -> &mut Command {
    command
        .env("VIPGATE_DATAPATH_FLOWS", sizes.flows.to_string())
        .env("VIPGATE_DATAPATH_SERVICES", sizes.services.to_string())
        .env("VIPGATE_DATAPATH_BACKENDS", sizes.backends.to_string())
        .env("VIPGATE_DATAPATH_RING_ELEMENTS", sizes.ring_elements.to_string())
}

/// `vipgate serve` with the lab's settings, started through `wrapper` if that is not empty.
fn serve(lab: &Lab, wrapper: &[&str]) -> Result<Command> {
    let binary = vipgate_binary()?;
    let mut command = match wrapper {
        [] => lab.router.command(binary),
        [program, arguments @ ..] => {
            let mut command = lab.router.command(program);
            command.args(arguments).arg(binary);
            command
        }
    };
    // Variables, so that a test's own flags win. Small tables: labs run side by side, and the kernel makes them in full.
    command
        .arg("serve")
        .env("VIPGATE_LISTEN", LISTEN)
        .env("VIPGATE_STORE", format!("sqlite://{}", lab.directory().join("vipgate.db").display()))
        .env("VIPGATE_BPFFS", lab.bpffs.path())
        .env("VIPGATE_HOOK", lab.hook.to_string())
        .env("VIPGATE_ADMIN_PASSWORD", PASSWORD)
        .env("VIPGATE_LOG_FILTER", "vipgate=debug,info");
    with_sizes(&mut command, SIZES);
    Ok(command)
}

/// The binary under test: beside the running test program, where cargo puts both.
pub fn vipgate_binary() -> Result<PathBuf> {
    let own = env::current_exe().context("a running program has a path")?;
    let found = own.ancestors().skip(1).take(2).map(|directory| directory.join("vipgate")).find(|path| path.is_file());
    found.with_context(|| format!("no vipgate near {}: run cargo xtask build", own.display()))
}
