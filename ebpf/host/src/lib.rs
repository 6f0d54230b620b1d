//! What the packet path asks of the kernel, for tests on the host.
//!
//! The modules have the names and signatures of `aya_ebpf`, of which this crate takes the place when `vipgate_pipeline` is
//! compiled for anything but BPF: so the stages run on the host as they are, under a debugger, a sanitizer or a fuzzer.
//! Behaviour follows the kernel's: each helper names the function that it stands for.
//!
//! Tables are the pipeline's own statics, so they are the process's: tests that use them take turns. The clock, the routes
//! and where packets went are the calling thread's ([`kernel`]).
#![allow(unsafe_code, reason = "map values and packets are reached through raw addresses, as in the kernel")]

pub mod btf_maps;
pub mod helpers;
pub mod kernel;
pub mod packet;
pub mod programs;

use std::ffi::c_void;

pub use aya_ebpf_bindings::bindings;
pub use aya_ebpf_macros as macros;

/// In the place of aya-log's: of what a program tells, the numbers are remembered.
#[macro_export]
macro_rules! info {
    ($context:expr, target: $target:literal, $format:literal, $($number:expr),+ $(,)?) => {
        $crate::kernel::record(&[$(u64::from($number)),+])
    };
}

/// A program's context.
pub trait EbpfContext {
    /// The context, for helpers.
    fn as_ptr(&self) -> *mut c_void;
}
