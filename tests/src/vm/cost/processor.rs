//! The time that a machine's processors have worked. Reads the host's `/proc`.
//!
//! It is the time that the host's scheduler gave to the threads on which QEMU runs the guest's processors: exact to the
//! nanosecond, without the host's other work. The guest's own `/proc/stat` is too coarse: it counts a whole tick for whatever
//! runs at the tick, and counts as work when a processor's thread waits for the host. On a busy host it differed tenfold
//! between rounds of the same way.

use crate::lab::Result;
use anyhow::{Context as _, ensure};
use std::fs;

/// Processor seconds of the machine since this QEMU started.
pub(super) fn worked(qemu: u32) -> Result<f64> {
    let (mut seconds, mut processors) = (0.0, 0);
    for thread in fs::read_dir(format!("/proc/{qemu}/task")).context("QEMU has ended")? {
        let thread = thread.context("QEMU has ended")?.path();
        // Threads that serve devices come and go.
        let Ok(name) = fs::read_to_string(thread.join("comm")) else { continue };
        if is_processor(&name) {
            let text = fs::read_to_string(thread.join("schedstat")).context("cannot read a thread's schedstat")?;
            seconds += ran(&text)?;
            processors += 1;
        }
    }
    ensure!(processors > 0, "QEMU has no thread that is named as a processor");
    Ok(seconds)
}

/// Whether this is a processor's thread, `CPU 0/TCG` or `CPU 0/KVM`.
fn is_processor(thread: &str) -> bool {
    thread.starts_with("CPU ")
}

/// Seconds that a thread ran, from its `schedstat`: nanoseconds run, nanoseconds waited, number of times scheduled.
fn ran(schedstat: &str) -> Result<f64> {
    let nanoseconds = schedstat.split_whitespace().next().context("an empty schedstat")?;
    let nanoseconds: u64 = nanoseconds.parse().with_context(|| format!("not a schedstat: {schedstat}"))?;
    Ok(nanoseconds as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_waits_for_a_processor_does_not_work() -> Result<()> {
        assert!((ran("1500000000 700000000 42\n")? - 1.5).abs() < 1e-9);
        Ok(())
    }

    #[test]
    fn an_invalid_schedstat_is_an_error() {
        assert!(ran("").is_err() && ran("soon 1 2").is_err());
    }

    #[test]
    fn threads_that_serve_devices_are_no_processors() {
        assert!(is_processor("CPU 1/TCG\n") && !is_processor("qemu-system-x86\n") && !is_processor("worker\n"));
    }
}
