//! Concessions to the kernel's verifier.
//!
//! The rare paths are *global* functions: unmangled, `extern "C"`, numbers in, a number out. The verifier follows such a
//! function once, for any arguments, instead of once for each path that leads to it; without that the paths through
//! the slot races multiply beyond its limit of a million instructions. It also keeps the hit's code and stack small.

/// The same number, of which the verifier knows that it has 16 bits.
///
/// Before Linux 6.19 or so the verifier forgets all that it knew of a number when its bytes are swapped, while the compiler
/// remembers that the swap of 16 bits leaves no more of them, and leaves out the mask that would say so. Packet pointers may
/// not be moved by a number without bounds.
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

/// The number below 64, as which the verifier knows it, too: Linux 6.1 forgets what a comparison of 32 bits tells of a copy.
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

/// The same number: the compiler does not take apart again what was put together for want of registers.
#[inline(always)]
pub fn whole(value: u32) -> u32 {
    counted(value as usize) as u32
}

/// Where a loop's counter begins: the compiler does not know, and so leaves the loop one, while the verifier does. Unrolled, it
/// may want more registers than there are, and their place in a stack that has none.
#[inline(always)]
pub fn counted(from: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut counter = from;
        // One instruction, because each has a line in the debug information, and two lines of one instruction are refused.
        // SAFETY: changes nothing.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) counter, options(pure, nomem, nostack)) };
        counter
    }
    #[cfg(not(target_arch = "bpf"))]
    from
}

/// Hides from the compiler that a value is constant or unused.
///
/// Such a function must leave a number in R0, or the verifier finds whatever pointer was there last and refuses it; but
/// the compiler drops a result that is constant or unused. They return `opaque` values, and their callers take
/// them through it.
#[inline(always)]
pub fn opaque(value: u32) -> u32 {
    core::hint::black_box(value)
}
