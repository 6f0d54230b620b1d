//! What a machine's processors have worked, by two clocks. Reads `/proc`, the host's and the guest's.
//!
//! The host's clock is the time that its scheduler gave to the threads which QEMU runs the guest's processors on: to the
//! nanosecond, and nothing that others on the host do is in it. The guest's is its `/proc/stat`, as an operator would look:
//! it samples a hundred times a second or so, and an emulated guest takes a moment in which its processor's thread had to
//! wait for the host for one in which it worked.

use crate::{lab::Result, vm::VmLab};
use anyhow::{Context as _, ensure};
use std::fs;

/// Of a second, what `/proc/stat` counts in.
const TICK: f64 = 0.01;

/// Seconds of work since the machine started, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) by_host: f64,
    pub(super) by_guest: f64,
}

impl Work {
    pub(super) fn of(lab: &VmLab) -> Result<Self> {
        let stat = lab.agent().says("cat /proc/stat")?;
        Ok(Self { by_host: threads(lab.machine().id())?, by_guest: busy(&stat)? })
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self { by_host: self.by_host - before.by_host, by_guest: self.by_guest - before.by_guest }
    }
}

/// What the threads of QEMU's that are processors ran.
fn threads(qemu: u32) -> Result<f64> {
    let (mut seconds, mut processors) = (0.0, 0);
    for thread in fs::read_dir(format!("/proc/{qemu}/task")).context("QEMU has ended")? {
        let thread = thread.context("QEMU has ended")?.path();
        // Those that serve devices come and go.
        let Ok(name) = fs::read_to_string(thread.join("comm")) else { continue };
        if name.starts_with("CPU ") {
            let text = fs::read_to_string(thread.join("schedstat")).context("cannot read a thread's schedstat")?;
            seconds += ran(&text)?;
            processors += 1;
        }
    }
    ensure!(processors > 0, "QEMU names none of its threads a processor");
    Ok(seconds)
}

/// A thread's `schedstat`: nanoseconds that it ran, nanoseconds that it waited, how often it was put on a processor.
fn ran(schedstat: &str) -> Result<f64> {
    let nanoseconds = schedstat.split_whitespace().next().context("an empty schedstat")?;
    let nanoseconds: u64 = nanoseconds.parse().with_context(|| format!("no schedstat: {schedstat}"))?;
    Ok(nanoseconds as f64 / 1e9)
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, and what is not the guest's own.
fn busy(stat: &str) -> Result<f64> {
    let line =
        stat.lines().find_map(|line| line.strip_prefix("cpu ")).with_context(|| format!("no CPUs in: {stat}"))?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .map(|word| word.parse().with_context(|| format!("no count of ticks is `{word}`")))
        .collect::<Result<_>>()?;
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else {
        anyhow::bail!("/proc/stat says too little: {line}");
    };
    Ok((user + nice + system + irq + softirq) as f64 * TICK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_no_work() -> Result<()> {
        let stat = "cpu  100 20 300 9000 400 5 60 70 8 9\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 1 2\n";
        assert!((busy(stat)? - 4.85).abs() < 1e-9);
        Ok(())
    }

    #[test]
    fn what_is_no_stat_is_an_error() {
        for wrong in ["", "cpu0 1 2 3 4 5 6 7\n", "cpu  1 2 3\n", "cpu  1 2 3 4 5 six 7\n"] {
            assert!(busy(wrong).is_err(), "{wrong:?}");
        }
        assert!(ran("").is_err() && ran("soon 1 2").is_err());
    }

    #[test]
    fn a_thread_that_waits_for_its_turn_does_not_work() -> Result<()> {
        assert!((ran("1500000000 700000000 42\n")? - 1.5).abs() < 1e-9);
        Ok(())
    }
}
