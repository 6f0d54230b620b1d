//! Doubles of the kernel's tables, helpers and packets, for tests of the packet path on the host.
//!
//! The modules have the names and signatures of `aya_ebpf`, whose place this crate takes when `vipgate_pipeline` is
//! compiled for any other target than BPF: so the stages run unchanged on the host, under a debugger, a sanitizer or a fuzzer.
//! They behave like the kernel: each helper names the function that it imitates.
//!
//! Tables are statics of the pipeline, shared by the process: tests that use them take turns. The clock, the routes
//! and the last redirect belong to the calling thread ([`kernel`]).
#![allow(unsafe_code, reason = "map values and packets are reached through raw addresses, as in the kernel")]

pub mod btf_maps;
pub mod helpers;
pub mod kernel;
pub mod packet;
pub mod programs;

use std::ffi::c_void;

pub use aya_ebpf_bindings::bindings;
pub use aya_ebpf_macros as macros;

/// Takes the place of aya-log's macro: keeps the numbers of a program's log record.
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
