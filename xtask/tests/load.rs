//! `cargo xtask load` and `unload` in a network namespace of their own. Needs root, and the network tools.

use anyhow::{Context as _, Result, ensure};
use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, PipeReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

const NAMESPACE: &str = "vgxtask-load";
const PINS: &str = "/sys/fs/bpf/vipgate-load";

/// A namespace with a router's devices; removed on drop.
struct Router;

impl Router {
    fn new() -> Result<Self> {
        // Remove one that a killed run left.
        let _ = ip(&format!("netns del {NAMESPACE}"));
        ip(&format!("netns add {NAMESPACE}"))?;
        let router = Self;
        for device in ["pub0", "priv0", "priv1"] {
            ip(&format!("-n {NAMESPACE} link add {device} type veth peer name {device}-peer"))?;
            ip(&format!("-n {NAMESPACE} link set {device}-peer up"))?;
            ip(&format!("-n {NAMESPACE} link set {device} up"))?;
        }
        ip(&format!("-n {NAMESPACE} link set lo up"))?;
        let forward = router.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]).status()?;
        ensure!(forward.success(), "the namespace does not route");
        Ok(router)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{NAMESPACE}")).arg("--").arg(program);
        command
    }

    fn xtask(&self, words: &str) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_xtask"));
        command.args(words.split(' '));
        command
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        if let Err(error) = ip(&format!("netns del {NAMESPACE}")) {
            eprintln!("{error:#}");
        }
    }
}

/// A running load; killed on drop.
struct Load {
    child: Child,
    /// Its output. Kept open so that writes to it do not fail.
    output: BufReader<PipeReader>,
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a load and waits until it serves; returns it with its output so far.
fn serving(router: &Router, words: &str) -> Result<(Load, String)> {
    let mut command = router.xtask(words);
    // Both outputs in one pipe keep their order.
    let (reader, writer) = std::io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer).stdin(Stdio::null());
    let child = command.spawn().context("cannot start xtask")?;
    drop(command);
    let mut load = Load { child, output: BufReader::new(reader) };
    let output = until(&mut load.output, "vipgate serves the API")?;
    Ok((load, output))
}

fn end(mut load: Load) -> Result<()> {
    let status = Command::new("kill").arg(load.child.id().to_string()).status()?;
    ensure!(status.success() && load.child.wait()?.success(), "it does not end cleanly");
    Ok(())
}

/// The devices that have pinned programs.
fn devices() -> Result<BTreeSet<String>> {
    let mut devices = BTreeSet::new();
    for tables in std::fs::read_dir(PINS)? {
        let Ok(links) = std::fs::read_dir(tables?.path().join("links")) else { continue };
        for link in links {
            let name = link?.file_name().to_string_lossy().into_owned();
            devices.extend(name.rsplit_once('-').map(|(_, device)| device.to_owned()));
        }
    }
    Ok(devices)
}

fn ip(words: &str) -> Result<Output> {
    let output = Command::new("ip").args(words.split(' ')).output().context("cannot start ip")?;
    ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

/// Reads a load's output until a line contains `word`, and returns all of it.
fn until(reader: &mut impl BufRead, word: &str) -> Result<String> {
    let mut output = String::new();
    let deadline = Instant::now() + Duration::from_secs(600);
    while !output.contains(word) && Instant::now() < deadline {
        ensure!(reader.read_line(&mut output)? > 0, "it ended before it printed `{word}`: {output}");
    }
    Ok(output)
}

#[test]
fn a_load_reports_what_it_does_with_each_device_and_unload_leaves_nothing() -> Result<()> {
    let router = Router::new()?;
    // Remove what a failed run left.
    router.xtask("unload").output()?;
    // The second load finds the store of the first.
    for round in 0..2 {
        let (load, output) = serving(&router, "load --device pub0 --device priv0 --hook tc")?;
        for word in ["program  vipgate_tc: ", "device=\"pub0\" hook=tc why=", "device=\"priv0\" hook=tc why="] {
            ensure!(output.contains(word), "`{word}` is missing in: {output}");
        }
        ensure!(output.contains("a router with these devices") == (round == 0), "{output}");
        end(load)?;
    }
    ensure!(Path::new(PINS).exists(), "the programs stay without a controller");

    // With other devices, a device that is no longer named loses its programs.
    let (load, _) = serving(&router, "load --device pub0 --device priv1 --hook tc")?;
    let expected = BTreeSet::from(["pub0", "priv1"].map(str::to_owned));
    ensure!(devices()? == expected, "{:?}", devices()?);
    // A second load fails and does not disturb the running one.
    let second = router.xtask("load --device pub0 --device priv0 --hook tc").stdin(Stdio::null()).output()?;
    let output = String::from_utf8_lossy(&second.stderr);
    ensure!(!second.status.success() && output.contains("the controller did not become ready"), "{output}");
    ensure!(!output.contains("No such process"), "{output}");
    ensure!(devices()? == expected, "{:?}", devices()?);
    end(load)?;

    let output = router.xtask("unload").output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(!Path::new(PINS).exists(), "pins are left");
    let scratch = Path::new(env!("CARGO_BIN_EXE_xtask")).ancestors().nth(2).context("a target directory")?.join("load");
    ensure!(!scratch.exists(), "{} is left", scratch.display());
    let again = router.xtask("unload").output()?;
    ensure!(again.status.success() && String::from_utf8_lossy(&again.stdout).contains("nothing was attached"));
    Ok(())
}
