//! `vipgate serve` in the router's namespace, started as a router's init system would.

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

/// Sizes of the tables of a lab's controller. The flow table starts at a quarter of its size.
pub const SIZES: Sizes = Sizes { flows: 262_144, services: 1024, backends: 1024, ring_elements: 1 << 20 };

/// Loading the programs and the first pass over the stored state: most of it is the kernel's verification of the programs, which
/// runs three times if the flow table changes its size.
const READY: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Controller {
    process: Process,
}

impl Lab {
    /// Runs `vipgate` with these arguments in the router's namespace, to its end.
    pub fn vipgate(&self, words: &str) -> Result<Output> {
        let mut command = self.router.command(vipgate_binary()?);
        command.env("VIPGATE_BPFFS", self.bpffs.path()).env("VIPGATE_HOOK", self.hook.to_string());
        command.args(words.split_whitespace()).output().context("vipgate starts")
    }
}

impl Controller {
    /// Starts it with the lab's store and pins, and waits until it notifies that it is ready, as systemd would.
    pub fn start(lab: &Lab, arguments: &[&str]) -> Result<Self> {
        Self::launch(lab, serve(lab, &[])?.args(arguments))
    }

    /// [`Controller::start`] through another program: `wrapper` is its name and arguments.
    pub fn start_as(lab: &Lab, wrapper: &[&str]) -> Result<Self> {
        Self::launch(lab, &mut serve(lab, wrapper)?)
    }

    /// [`Controller::start`] with tables of these sizes.
    pub fn start_with(lab: &Lab, sizes: Sizes) -> Result<Self> {
        Self::launch(lab, with_sizes(&mut serve(lab, &[])?, sizes))
    }

    /// Starts a controller with tables of these sizes, and kills it once `when` returns true, or once it is ready.
    pub fn start_and_kill(lab: &Lab, sizes: Sizes, when: impl Fn() -> bool) -> Result<()> {
        let (path, notifications) = notified(lab)?;
        let mut command = serve(lab, &[])?;
        let command = with_sizes(&mut command, sizes).env("NOTIFY_SOCKET", path);
        let mut process = Process::start("vipgate", command, lab.directory())?;
        let end = Instant::now() + READY;
        while Instant::now() < end && !when() && notifications.recv(&mut [0]).is_err() {
            // The interval between two looks: a stage may last only some milliseconds.
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
            let length = notifications.recv(&mut message).context("it has sent no notification")?;
            anyhow::ensure!(message[..length].starts_with(b"READY=1"), "it has sent another notification");
            Ok(())
        })?;
        Ok(Self { process })
    }

    /// Starts a controller that must fail; returns its exit status and output.
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

    /// Bytes of memory in use as the kernel counts them, including the tables that it maps.
    pub fn resident(&self) -> Result<u64> {
        self.memory("VmRSS")
    }

    /// Bytes of anonymous memory: neither files nor the kernel's tables.
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

    /// Sends SIGTERM, as systemd stops a service; returns the exit status.
    pub fn stop(self) -> Result<ExitStatus> {
        self.stop_by(Signal::SIGTERM)
    }

    pub fn stop_by(mut self, signal: Signal) -> Result<ExitStatus> {
        self.process.signal(signal)?;
        self.process.wait(END)
    }

    /// Sends SIGHUP, as `systemctl reload` does.
    pub fn reload(&self) -> Result<()> {
        self.process.signal(Signal::SIGHUP)
    }

    /// Sends SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait(END)?;
        Ok(())
    }

    /// Everything that the lab's controllers have printed, including those before this one.
    #[must_use]
    pub fn said(&self) -> String {
        self.process.said()
    }
}

/// The socket to which a controller notifies that it is ready, in place of systemd's: its path, and the reader.
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
    // Set by variables, so that a test's own flags override them. Small tables: labs run side by side, and the kernel allocates
    // them in full.
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
