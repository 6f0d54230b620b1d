//! Workarounds for the kernel's verifier.
//!
//! The rare paths are *global* functions: unmangled, `extern "C"`, numbers in, a number out. The verifier checks such a
//! function once, for any arguments, instead of once for each path that leads to it. Otherwise the paths through
//! the slot races would exceed its limit of a million instructions. It also keeps the hit's code and stack small.

/// Returns the same number, and shows the verifier that it has 16 bits.
///
/// Before about Linux 6.19 the verifier forgets a number's bounds when its bytes are swapped. The compiler, which knows
/// that a swap of 16 bits leaves 16 bits, removes a mask. Packet pointers may not be moved by a number without bounds.
#[inline(always)]
pub fn bounded(value: u16) -> u16 {
    #[cfg(target_arch = "bpf")]
    {
        let mut wide = value as u64;
        // SAFETY: changes nothing but the register that it is given.
        unsafe { core::arch::asm!("{0} &= 65535", inout(reg) wide, options(pure, nomem, nostack)) };
        wide as u16
    }
    #[cfg(not(target_arch = "bpf"))]
    value
}

/// Limits the number to below 64 and shows that to the verifier. Linux 6.1 does not apply a 32-bit comparison to copies of
/// a number.
#[inline(always)]
pub fn below_64(value: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut wide = value;
        // SAFETY: changes nothing but the register that it is given.
        unsafe { core::arch::asm!("{0} &= 63", inout(reg) wide, options(pure, nomem, nostack)) };
        wide
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        value % 64
    }
}

/// Returns the same number, and keeps the compiler from splitting a combined value into several registers again.
#[inline(always)]
pub fn whole(value: u32) -> u32 {
    counted(value as usize) as u32
}

/// A loop counter's start. The compiler does not know it, and so does not unroll the loop; the verifier does. An unrolled
/// loop may need more registers than there are, and stack that is not there.
#[inline(always)]
pub fn counted(from: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut counter = from;
        // An instruction of its own, because the kernel rejects debug information with two lines for one instruction.
        // SAFETY: changes nothing.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) counter, options(pure, nomem, nostack)) };
        counter
    }
    #[cfg(not(target_arch = "bpf"))]
    from
}

/// Hides from the compiler that a value is constant or unused.
///
/// A global function must leave a number in R0, or the verifier finds the last pointer there and rejects it. But the
/// compiler drops a result that is constant or unused. So these functions return `opaque` values, and their callers pass
/// the result through `opaque`.
#[inline(always)]
pub fn opaque(value: u32) -> u32 {
    core::hint::black_box(value)
}
