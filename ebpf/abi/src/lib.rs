//! The tables that the kernel programs and the controller share: their keys, values, names and sizes, and the pure
//! arithmetic both sides do on them.
//!
//! Everything here is `repr(C)`, of fixed size, without padding, and without I/O. Addresses and ports are stored as in the
//! packet (network byte order, read as a native integer), so that the packet path never swaps bytes: such fields have the type
//! [`Be16`] or [`Be32`].
//!
//! Every change of a meaning or layout changes [`ABI_VERSION`], which is part of the pin directory's
//! path. So programs and controllers with different layouts never share a table.
#![no_std]
#![allow(unsafe_code, reason = "marking the map values as plain old data for aya takes an unsafe impl")]

#[cfg(not(any(target_arch = "bpf", target_arch = "x86_64")))]
compile_error!(
    "vipgate runs on x86-64 only: on other processors, whose loads and stores overtake each other, the flow table's race \
     rules (ebpf/abi/src/flow/mod.rs) do not hold"
);

pub mod address_filter;
pub mod backend;
pub mod checksum;
pub mod config;
pub mod counters;
pub mod fair_share;
pub mod flow;
pub mod fragment;
pub mod hash;
pub mod interface;
pub mod load;
pub mod maps;
pub mod meter;
pub mod refused;
pub mod sample;
pub mod service;
pub mod snat;

/// Part of the name of the directory below the bpffs root that holds the pinned maps and links: `abi-<ABI_VERSION>`.
pub const ABI_VERSION: u32 = 9;

/// A 16-bit field in network byte order: `u16::from_be` gives its value.
pub type Be16 = u16;
/// A 32-bit field in network byte order: `u32::from_be` gives its value.
pub type Be32 = u32;

/// Declares types as plain old data for aya: any bit pattern is a value, and there is no implicit padding.
macro_rules! pod {
    ($($t:ty),+ $(,)?) => {$(
        // SAFETY: repr(C), only integer fields and arrays of them, padding-free (asserted by size in the same module).
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $t {}
    )+};
}
pub(crate) use pod;
