//! The kernel's time.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_ns};

/// The low 32 bits of jiffies: a load that the verifier inlines; [`nanoseconds`] costs 32 ns.
#[inline(always)]
pub fn jiffies() -> u32 {
    jiffies64() as u32
}

/// All of jiffies.
#[inline(always)]
pub fn jiffies64() -> u64 {
    // SAFETY: takes nothing, returns a number.
    unsafe { bpf_jiffies64() }
}

/// Nanoseconds since the machine started.
#[inline(always)]
pub fn nanoseconds() -> u64 {
    // SAFETY: as above.
    unsafe { bpf_ktime_get_ns() }
}
