//! Waits for the packets that are being handled now.

use std::{io, thread, time::Duration};

use tracing::debug;

/// `MEMBARRIER_CMD_GLOBAL` of linux/membarrier.h: returns after a grace period of the kernel's RCU.
const GLOBAL: libc::c_int = 1;

/// How long to wait where the kernel has no such call for us (CPUs with `nohz_full`): no packet takes a thousandth of it.
const LONG: Duration = Duration::from_millis(200);

/// Returns when every program run that has begun is over. Programs run under RCU, a batch of packets at most.
pub(super) fn synchronize() {
    // SAFETY: takes and returns numbers.
    let answer = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if answer != 0 {
        debug!(error = %io::Error::last_os_error(), "no membarrier(2); waiting instead");
        thread::sleep(LONG);
    }
}
