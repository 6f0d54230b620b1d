//! vipgate's kernel programs: one pipeline (see `pipeline`) at two hooks.
//!
//! They know addresses, ports and small numbers; UUIDs and rules stay in the controller, which fills the tables
//! (`maps`, layouts in `vipgate_abi`). What they do not understand goes up the stack unchanged.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "compare-and-swap on this target is reached through the intrinsics only")]
#![warn(clippy::undocumented_unsafe_blocks)]

mod atomic;
mod count;
mod maps;
mod packet;
mod parse;
mod pipeline;
mod route;
mod service;
mod table;
mod tc;
mod tcp;
mod verifier;
mod xdp;

use aya_ebpf::{
    helpers::bpf_jiffies64,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};

#[xdp]
#[inline(always)]
pub fn vipgate_xdp(ctx: XdpContext) -> u32 {
    pipeline::run(xdp::XdpPacket(ctx)) as u32
}

#[classifier]
#[inline(always)]
pub fn vipgate_tc(ctx: TcContext) -> i32 {
    pipeline::run(tc::TcPacket(ctx))
}

/// Tells the controller the kernel's time: a test run returns the low 32 bits of jiffies.
#[xdp]
pub fn vipgate_clock(_ctx: XdpContext) -> u32 {
    // SAFETY: takes nothing, returns a number.
    unsafe { bpf_jiffies64() as u32 }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lets programs that call GPL-only helpers load only under this licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
