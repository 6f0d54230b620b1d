//! The kernel's time as the tables keep it.

use aya_ebpf::helpers::bpf_jiffies64;

/// The low 32 bits of jiffies: a load the verifier inlines, where `bpf_ktime_get_ns` costs 32 ns.
#[inline(always)]
pub fn jiffies() -> u32 {
    // SAFETY: takes nothing, returns a number.
    unsafe { bpf_jiffies64() as u32 }
}
