//! What a machine's processors have worked. Reads the host's `/proc`.
//!
//! It is the time that the host's scheduler gave to the threads which QEMU runs the guest's processors on: to the
//! nanosecond, and nothing that others on the host do is in it. The guest's own `/proc/stat` would not do: it takes what
//! a clock's tick meets for the whole tick, and a moment in which a processor's thread waits for the host for one in which
//! it works. Beside others on the host it said ten times as much of the same way in one round as in another.

use crate::lab::Result;
use anyhow::{Context as _, ensure};
use std::fs;

/// Seconds that the processors have worked since the machine of this QEMU started.
pub(super) fn worked(qemu: u32) -> Result<f64> {
    let (mut seconds, mut processors) = (0.0, 0);
    for thread in fs::read_dir(format!("/proc/{qemu}/task")).context("QEMU has ended")? {
        let thread = thread.context("QEMU has ended")?.path();
        // Those that serve devices come and go.
        let Ok(name) = fs::read_to_string(thread.join("comm")) else { continue };
        if is_processor(&name) {
            let text = fs::read_to_string(thread.join("schedstat")).context("cannot read a thread's schedstat")?;
            seconds += ran(&text)?;
            processors += 1;
        }
    }
    ensure!(processors > 0, "QEMU names none of its threads a processor");
    Ok(seconds)
}

/// `CPU 0/TCG` or `CPU 0/KVM`.
fn is_processor(thread: &str) -> bool {
    thread.starts_with("CPU ")
}

/// A thread's `schedstat`: nanoseconds that it ran, nanoseconds that it waited, how often it was put on a processor.
fn ran(schedstat: &str) -> Result<f64> {
    let nanoseconds = schedstat.split_whitespace().next().context("an empty schedstat")?;
    let nanoseconds: u64 = nanoseconds.parse().with_context(|| format!("no schedstat: {schedstat}"))?;
    Ok(nanoseconds as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_waits_for_its_turn_does_not_work() -> Result<()> {
        assert!((ran("1500000000 700000000 42\n")? - 1.5).abs() < 1e-9);
        Ok(())
    }

    #[test]
    fn what_is_no_schedstat_is_an_error() {
        assert!(ran("").is_err() && ran("soon 1 2").is_err());
    }

    #[test]
    fn threads_that_serve_devices_are_no_processors() {
        assert!(is_processor("CPU 1/TCG\n") && !is_processor("qemu-system-x86\n") && !is_processor("worker\n"));
    }
}
