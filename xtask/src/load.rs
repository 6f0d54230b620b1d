//! `cargo xtask load` and `unload`: runs this tree's controller and programs on this machine's own devices, and removes them.
//!
//! Both keep apart from an installed router: store and session are below the build directory, pins in a directory of their own.
//! The store is kept until `unload`; a later load removes only the networks on devices that it does not name.

use crate::{
    build::{binary, target_directory},
    ebpf,
    setup::{self, Need},
    sh::{as_root, run as run_command, which},
};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Pins of `load`, and of an installed router.
const PINS: &str = "/sys/fs/bpf/vipgate-load";
const INSTALLED: &str = "/sys/fs/bpf/vipgate";
/// Capabilities for loading the programs and serving the API.
const READY: Duration = Duration::from_secs(60);
const PASSWORD: &str = "password";
/// The line of the log that reports a controller ready.
const SERVES: &str = "vipgate serves the API";
/// Exit status of doctor if it found a problem.
const HINDERED: i32 = 1;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A device to carry the programs; the first is the public one.
    #[arg(long = "device", required = true, value_name = "DEVICE")]
    devices: Vec<String>,

    /// Where the programs attach: auto, xdp, xdp-generic or tc.
    #[arg(long, default_value = "auto")]
    hook: String,

    /// Where the API listens.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT")]
    listen: String,

    /// Optimise the binary, as for a router. The kernel programs always are.
    #[arg(long)]
    release: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct UnloadArgs {}

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(wrong) = args.devices.iter().find(|device| !is_plain(device)) {
        bail!("`{wrong}` is not a valid device name");
    }
    setup::ensure(&[Need::Build])?;
    ebpf::build()?;
    let program = binary(args.release)?;
    refuse_beside_an_installed_one(&program)?;
    let scratch = Scratch::make(args)?;

    eprintln!("==> doctor");
    let status = scratch.vipgate(&program)?.arg("doctor").status().context("cannot start doctor")?;
    if !status.success() && status.code() != Some(HINDERED) {
        bail!("{status}: doctor could not examine this machine");
    }
    let router = router(&args.devices);
    if scratch.applied().as_deref() != Some(&router) {
        scratch.apply(&program, &router)?;
    }
    eprintln!("==> the controller; Ctrl-C ends it, the programs stay until cargo xtask unload");
    eprintln!(
        "    as this client: XDG_STATE_HOME={} {} query vips (logged in as admin, password `{PASSWORD}`)",
        scratch.directory.display(),
        program.display()
    );
    // `exec`: signals and the exit status are the controller's own.
    Err(scratch.vipgate(&program)?.arg("serve").exec()).context("cannot start the controller")
}

pub(crate) fn unload(_: &UnloadArgs) -> Result<()> {
    let directory = directory();
    if !is_directory(PINS)? {
        println!("nothing was attached");
        return Ok(());
    }
    let programs = ["release", "debug"].map(|profile| target_directory().join(profile).join("vipgate"));
    let newest = |path: &&PathBuf| fs::metadata(path).and_then(|about| about.modified()).ok();
    let program = programs.iter().filter(|path| path.is_file()).max_by_key(newest);
    match program {
        Some(program) => {
            let mut detach = as_root(program, "taking programs out of the kernel")?;
            run_command(detach.arg("detach").args(["--bpffs", PINS]))?;
        }
        None => bail!("there is no vipgate in the build directory: run cargo xtask build first"),
    }
    let remove = which("rm").context("there is no rm on this machine")?;
    run_command(as_root(&remove, "removing what the controller made")?.arg("-rf").args([Path::new(PINS), &directory]))
}

/// Asks as root: only root can look into /sys/fs/bpf.
fn is_directory(path: &str) -> Result<bool> {
    let test = which("test").context("there is no test(1) on this machine")?;
    Ok(as_root(&test, "looking for pins")?.args(["-d", path]).status().context("cannot start test")?.success())
}

/// An installed controller may hold the same devices.
fn refuse_beside_an_installed_one(program: &Path) -> Result<()> {
    let mut status = as_root(program, "looking for an installed router")?;
    let status = status.args(["status", "--output", "json", "--bpffs", INSTALLED]);
    // The tables of another version cannot be read by this one.
    let is_there = |mut entries: fs::ReadDir| entries.next().is_some();
    if fs::read_dir(INSTALLED).is_ok_and(is_there)
        || status.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success()
    {
        bail!(
            "an installed router has its programs in this kernel: `systemctl stop vipgate; vipgate detach` ends it, and its traffic"
        );
    }
    Ok(())
}

/// Files that are kept between two loads.
struct Scratch {
    directory: PathBuf,
    hook: String,
    listen: String,
}

fn directory() -> PathBuf {
    target_directory().join("load")
}

impl Scratch {
    fn make(args: &Args) -> Result<Self> {
        let directory = directory();
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        fs::write(directory.join("password"), PASSWORD).context("cannot write the password's file")?;
        Ok(Self { directory, hook: args.hook.clone(), listen: args.listen.clone() })
    }

    /// `vipgate` with the settings of this load.
    fn vipgate(&self, program: &Path) -> Result<Command> {
        let mut command = as_root(program, "loading programs into the kernel")?;
        command
            .env("VIPGATE_CONFIG", "/dev/null")
            .env("VIPGATE_STORE", format!("sqlite://{}", self.directory.join("vipgate.db").display()))
            .env("VIPGATE_BPFFS", PINS)
            .env("VIPGATE_HOOK", &self.hook)
            .env("VIPGATE_LISTEN", &self.listen)
            .env("VIPGATE_ADMIN_PASSWORD_FILE", self.directory.join("password"))
            .env("XDG_STATE_HOME", &self.directory);
        Ok(command)
    }

    fn file(&self) -> PathBuf {
        self.directory.join("router.yaml")
    }

    /// The router file that was applied last.
    fn applied(&self) -> Option<String> {
        fs::read_to_string(self.file()).ok()
    }

    /// Applies a router file to the store. Runs a controller for it, since only a controller takes the calls.
    fn apply(&self, program: &Path, router: &str) -> Result<()> {
        eprintln!("==> a router with these devices");
        let new = self.directory.join("new.yaml");
        fs::write(&new, router).with_context(|| format!("cannot write {}", new.display()))?;
        let mut serve = self.vipgate(program)?;
        let log = fs::File::create(self.directory.join("apply.log")).context("cannot write the log")?;
        let mut controller =
            serve.arg("serve").stderr(log.try_clone()?).stdout(log).spawn().context("cannot start it")?;
        let filled = self.fill(program, &new, &mut controller);
        // The controller may have ended by itself, for example because another one runs.
        if let Ok(None) = controller.try_wait() {
            // Through sudo the controller is root's: only root can signal it.
            let kill = which("kill").context("there is no kill on this machine")?;
            run_command(as_root(&kill, "ending the controller")?.arg(controller.id().to_string()))?;
        }
        controller.wait().context("cannot wait for the controller")?;
        filled?;
        fs::rename(&new, self.file()).context("cannot keep what was applied")
    }

    fn fill(&self, program: &Path, router: &Path, controller: &mut Child) -> Result<()> {
        self.await_service(controller)?;
        let api = format!("http://{}", self.listen);
        let mut login = self.vipgate(program)?;
        login.args(["login", "--api", &api, "--password-file"]).arg(self.directory.join("password"));
        let login = login.stdin(Stdio::null()).output().context("cannot start a log-in")?;
        if !login.status.success() {
            bail!("cannot log in: {}", String::from_utf8_lossy(&login.stderr).trim());
        }
        // Prune what an earlier load had on other devices.
        run_command(self.vipgate(program)?.args(["apply", "--prune", "--file"]).arg(router))
    }

    /// Waits until this controller's log reports it ready: another controller may answer at its address.
    fn await_service(&self, controller: &mut Child) -> Result<()> {
        let log = self.directory.join("apply.log");
        let deadline = Instant::now() + READY;
        loop {
            let ended = controller.try_wait().context("cannot ask for the controller")?;
            let said = fs::read(&log).context("cannot read the log")?;
            let said = String::from_utf8_lossy(&said);
            if ended.is_none() && said.contains(SERVES) {
                return Ok(());
            }
            if ended.is_some() || Instant::now() > deadline {
                eprint!("{said}");
                bail!("the controller did not become ready");
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
}

/// A router file with a network on each device, the first one public: a device gets its programs once a network is on it.
fn router(devices: &[String]) -> String {
    let mut text = "zones:\n  load:\n    l2s:\n".to_owned();
    for (number, device) in devices.iter().enumerate() {
        let category = if number == 0 { "Public" } else { "Private" };
        text += &format!(
            "      {device}:\n        physicalInterface: {device}\n        l3s:\n          {device}: {{category: {category}}}\n"
        );
    }
    text
}

/// Whether a name needs no quotes in the router file.
fn is_plain(name: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_device_is_the_public_one() {
        let text = router(&["pub0".to_owned(), "priv0.7".to_owned()]);
        assert!(text.contains("physicalInterface: pub0\n        l3s:\n          pub0: {category: Public}"), "{text}");
        assert!(text.contains("          priv0.7: {category: Private}"), "{text}");
    }

    #[test]
    fn a_device_name_that_yaml_would_read_otherwise_is_refused() {
        assert!(["pub0", "eth0.100", "vipgate-q0"].into_iter().all(is_plain));
        assert!(["", "a: b", "{}", "0", "a\nb"].into_iter().all(|name| !is_plain(name)));
    }
}
