//! The init of the test VMs. Besides what the host asks for, nothing else runs there: it mounts what a distribution's init
//! would, loads the drivers, and starts the agent. Or it boots a system on a disk, whose init starts the agent.
//! May touch everything: the machine is there for one test.
//!
//! The agent is a process of its own, because the first process must reap orphans.

mod agent;
mod boot;
mod disk;

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::{
        reboot::{RebootMode, reboot},
        wait::wait,
    },
    unistd::Pid,
};
use std::{
    env,
    path::Path,
    process::{Command, ExitCode},
};
use vipgate_guest::STAGED;

/// The argument that makes this program run as the agent.
const AGENT: &str = "agent";

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some(AGENT) {
        return match agent::serve(env::args().skip(2).collect()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("agent: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    if let Err(error) = init() {
        eprintln!("init: {error:#}");
    }
    // QEMU ends with the guest. If init returned, the kernel would panic, which reports less.
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        Err(_) => ExitCode::FAILURE,
    }
}

/// Brings the guest up; returns when its agent has ended.
fn init() -> Result<()> {
    if Path::new(STAGED).exists() {
        match disk::start()? {}
    }
    let complaints = boot::boot()?;
    let agent = Command::new("/proc/self/exe").arg(AGENT).args(complaints).spawn().context("cannot start the agent")?;
    let agent = Pid::from_raw(agent.id().cast_signed());
    loop {
        match wait() {
            Ok(status) if status.pid() == Some(agent) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for processes"),
        }
    }
}
