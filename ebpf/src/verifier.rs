//! Concessions to the kernel's verifier.
//!
//! The rare paths are *global* functions: unmangled, `extern "C"`, numbers in, a number out. The verifier follows such a
//! function once, for any arguments, instead of once for each path that leads to it; without that the paths through
//! the slot races multiply beyond its limit of a million instructions. It also keeps the hit's code and stack small.

/// Hides from the compiler that a value is constant or unused.
///
/// Such a function must leave a number in R0, or the verifier finds whatever pointer was there last and refuses it; but
/// the compiler drops a result that is constant or unused. They return `opaque` values, and their callers take
/// them through it.
#[inline(always)]
pub fn opaque(value: u32) -> u32 {
    core::hint::black_box(value)
}
