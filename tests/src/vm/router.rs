//! vipgate in the guest, operated as by its operator: started, configured by a file, examined, stopped, removed.
//!
//! Everything goes through the guest's shell and the released binary; the guest runs none of this program's own code.

use super::{VmLab, agent::LineResult, lab::System};
use crate::lab::{Hook, Result, controller::PASSWORD, wait_until};
use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use std::time::Duration;

/// Directory in the guest.
const DIRECTORY: &str = "/run/test";
const SESSION: &str = "/root/.local/state/vipgate/session.json";
/// Exit status of a call if the API does not answer.
const UNREACHABLE: i32 = 9;

/// Loading the programs takes 5 to 15 s on an emulated machine, and more if other machines run.
const READY: Duration = Duration::from_secs(240);
const END: Duration = Duration::from_secs(60);

impl VmLab {
    /// Starts `vipgate serve` with default settings except for the hook, waits until the API answers, and logs in once.
    ///
    /// # Errors
    /// It ends instead; the message holds its output.
    pub fn serve(&self, hook: Hook) -> Result<()> {
        self.agent().write(&format!("{DIRECTORY}/password"), &format!("{PASSWORD}\n"))?;
        let line = format!(
            "cd {DIRECTORY}; rm -f ended; mkdir -p /var/lib/vipgate; \
             (VIPGATE_HOOK={hook} VIPGATE_ADMIN_PASSWORD_FILE={DIRECTORY}/password setsid vipgate serve; echo $? >ended) \
             >>log 2>&1 </dev/null &"
        );
        self.agent().says(&line)?;
        // Any answer will do, except that the API does not answer. The session is stored and outlives the
        // controller; another log-in would check a password, which takes seconds here.
        let line = format!(
            "cd {DIRECTORY}; while ! [ -e ended ]; do \
             if [ -e {SESSION} ]; then vipgate query zones; else vipgate login --password-file password; fi >asked 2>&1; \
             [ $? = {UNREACHABLE} ] || exit 0; sleep 0.3; done; exit 1"
        );
        let ready = self.agent().run_with(&line, "", READY)?;
        ensure!(ready.status == Some(0), "vipgate serve with hook {hook} does not come up; its log:\n{}", self.log(40));
        Ok(())
    }

    /// Runs `vipgate serve`, which must end by itself.
    pub fn serve_and_end(&self) -> Result<LineResult> {
        self.agent().run_with("mkdir -p /var/lib/vipgate; vipgate serve", "", READY)
    }

    /// Sends SIGTERM, as systemd stops a service; returns the exit status.
    pub fn stop(&self) -> Result<i32> {
        let line = format!(
            "cd {DIRECTORY} && kill -TERM $(pidof vipgate) && while ! [ -e ended ]; do sleep 0.1; done; cat ended"
        );
        let said = self.agent().run_with(&line, "", END)?.succeeded(&line)?;
        said.trim().parse().with_context(|| format!("not an exit status: {said}"))
    }

    /// Stops the controller and removes everything from the kernel; the store stays.
    pub fn clear(&self) -> Result<()> {
        if self.agent().run("pidof vipgate")?.status == Some(0) {
            self.stop()?;
        }
        self.vipgate("detach").map(drop)
    }

    /// Runs a vipgate command that must succeed; returns its output.
    pub fn vipgate(&self, words: &str) -> Result<String> {
        self.agent().says(&format!("vipgate {words}"))
    }

    /// Runs a vipgate command and returns its JSON, even if its exit status reports a problem.
    pub fn report(&self, words: &str) -> Result<Value> {
        let said = self.agent().run(&format!("vipgate {words} --output json"))?;
        serde_json::from_str(&said.stdout).with_context(|| format!("`vipgate {words} --output json`: {said}"))
    }

    /// Applies this router file; returns the output of `vipgate apply`.
    pub fn apply(&self, router: &str) -> Result<String> {
        let path = format!("{DIRECTORY}/router.yaml");
        self.agent().write(&path, router)?;
        self.vipgate(&format!("apply -f {path}"))
    }

    /// The devices that have a program, each with its hook.
    pub fn attached(&self) -> Result<Vec<(String, String)>> {
        let status = self.report("status")?;
        let devices = status["devices"].as_array().context("a status tells of devices")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(devices.iter().map(|device| (text(&device["name"]), text(&device["hook"]))).collect())
    }

    /// Waits until nothing of vipgate is in the kernel: programs, queueing disciplines, devices, pins.
    pub fn is_clean(&self) -> Result<()> {
        let looks = [
            ("programs", "bpftool prog show | grep vipgate"),
            ("pins", "find /sys/fs/bpf -type f"),
            ("queueing disciplines", "tc qdisc show | grep clsact"),
            ("devices", "ip -oneline link show | grep vipgate"),
            ("XDP programs", "ip -oneline link show | grep xdp"),
        ];
        // The kernel frees programs some moments after the last reference is dropped.
        wait_until("vipgate to be gone from the kernel", Duration::from_secs(20), || {
            for (what, look) in looks {
                let said = self.agent().run(look)?;
                if !said.stdout.is_empty() {
                    bail!("{what} are left: {}", said.stdout.trim());
                }
            }
            Ok(())
        })
    }

    /// Empties the log.
    pub fn clear_log(&self) -> Result<()> {
        self.agent().says(&format!("mkdir -p {DIRECTORY}; : >{DIRECTORY}/log")).map(drop)
    }

    /// The last lines of the controllers' log since it was emptied.
    #[must_use]
    pub fn log(&self, lines: u32) -> String {
        let colours = "s/\\x1b\\[[0-9;]*m//g";
        let said = self.agent().run(&match self.system {
            System::Bare => format!("tail -n {lines} {DIRECTORY}/log | sed '{colours}'"),
            System::Debian => format!("journalctl --unit vipgate --lines {lines} --output cat | sed '{colours}'"),
        });
        said.map_or_else(|error| format!("{error:#}"), |said| said.stdout)
    }
}
