//! vipgate's packet path: one pipeline (see `pipeline`) for two hooks.
//!
//! It knows addresses, ports and small numbers; UUIDs and rules stay in the controller, which fills the tables
//! (`maps`, layouts in `vipgate_abi`). Packets that it does not understand go up the stack unchanged.
//!
//! Compiled for any other target than BPF, it runs in tests, where `vipgate_host_kernel` takes the kernel's place.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics, asm_experimental_arch))]
#![cfg_attr(
    target_arch = "bpf",
    allow(internal_features, reason = "compare-and-swap on this target is reached through the intrinsics only")
)]
#![warn(clippy::undocumented_unsafe_blocks)]
#![allow(rustdoc::private_intra_doc_links, reason = "the crate is documented for its own developers")]
#![allow(clippy::needless_borrows_for_generic_args, reason = "helpers take keys by address: a value is copied first")]

#[cfg(not(target_arch = "bpf"))]
extern crate vipgate_host_kernel as aya_ebpf;
#[cfg(not(target_arch = "bpf"))]
extern crate vipgate_host_kernel as aya_log_ebpf;

mod address_filter;
mod atomic;
pub mod clock;
pub mod count;
mod direct;
mod forward;
mod fragment;
mod hairpin;
pub mod icmp;
mod ingress;
mod load;
pub mod log;
pub mod maps;
pub mod meter;
mod odd_headers;
mod open;
mod options;
pub mod outward;
pub mod packet;
pub mod parse;
pub mod pipeline;
mod portless;
mod ports;
mod refused;
mod reset;
pub mod route;
mod sample;
mod secondary;
pub mod service;
pub mod table;
pub mod tc;
mod tcp;
pub mod types;
mod verifier;
mod vlan;
pub mod xdp;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel loads programs that call GPL-only helpers (`bpf_fib_lookup`) only under a GPL-compatible licence. This crate
/// has two licences; the kernel gets the GPL.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 7] = *b"GPL v2\0";
