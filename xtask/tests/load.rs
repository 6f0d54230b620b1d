//! `cargo xtask load` and `unload` in a network namespace of their own. Needs root, and the network tools.

use anyhow::{Context as _, Result, ensure};
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

const NAMESPACE: &str = "vgxtask-load";
const PINS: &str = "/sys/fs/bpf/vipgate-load";

/// The namespace with a router's two devices; gone on drop.
struct Router;

impl Router {
    fn new() -> Result<Self> {
        // One that a killed run left.
        let _ = ip(&format!("netns del {NAMESPACE}"));
        ip(&format!("netns add {NAMESPACE}"))?;
        let router = Self;
        for device in ["pub0", "priv0"] {
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

/// A load that runs; killed on drop.
struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ip(words: &str) -> Result<Output> {
    let output = Command::new("ip").args(words.split(' ')).output().context("cannot start ip")?;
    ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

/// Reads what a load says until a line holds `word`, and gives all of it.
fn until(reader: &mut impl BufRead, word: &str) -> Result<String> {
    let mut said = String::new();
    let deadline = Instant::now() + Duration::from_secs(600);
    while !said.contains(word) && Instant::now() < deadline {
        ensure!(reader.read_line(&mut said)? > 0, "it ended before it said `{word}`: {said}");
    }
    Ok(said)
}

#[test]
fn a_load_says_what_it_does_with_each_device_and_unload_leaves_nothing() -> Result<()> {
    let router = Router::new()?;
    // The second finds the store of the first.
    for round in 0..2 {
        let mut command = router.xtask("load --device pub0 --device priv0 --hook tc");
        // Both outputs in one, in their order.
        let (reader, writer) = std::io::pipe()?;
        command.stdout(writer.try_clone()?).stderr(writer).stdin(Stdio::null());
        let mut load = Load(command.spawn().context("cannot start xtask")?);
        drop(command);
        let mut reader = BufReader::new(reader);
        let said = until(&mut reader, "vipgate serves the API")?;
        for word in ["program  vipgate_tc: ", "device=\"pub0\" hook=tc why=", "device=\"priv0\" hook=tc why="] {
            ensure!(said.contains(word), "`{word}` is missing in: {said}");
        }
        ensure!(said.contains("a router with these devices") == (round == 0), "{said}");
        let status = Command::new("kill").arg(load.0.id().to_string()).status()?;
        ensure!(status.success() && load.0.wait()?.success(), "it does not end as it should");
    }
    ensure!(Path::new(PINS).exists(), "the programs stay without a controller");

    let output = router.xtask("unload").output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(!Path::new(PINS).exists(), "pins are left");
    let scratch = Path::new(env!("CARGO_BIN_EXE_xtask")).ancestors().nth(2).context("a target directory")?.join("load");
    ensure!(!scratch.exists(), "{} is left", scratch.display());
    let again = router.xtask("unload").output()?;
    ensure!(again.status.success() && String::from_utf8_lossy(&again.stdout).contains("nothing was attached"));
    Ok(())
}
