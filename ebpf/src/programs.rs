//! The programs that the controller loads: the pipeline at its hooks, and a clock.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    macros::{classifier, raw_tracepoint, sk_lookup, xdp},
    programs::{RawTracePointContext, SkLookupContext, TcContext, XdpContext},
};
use vipgate_abi::counters::Reason;
use vipgate_pipeline::{
    clock, count, icmp,
    maps::CONFIG,
    meter, outward,
    packet::Packet,
    pipeline, service,
    tc::TcPacket,
    types::Rewritten,
    xdp::{BY_NEIGHBOUR, GENERIC, NATIVE, XdpPacket},
};

/// Takes frames in several buffers, too: native XDP then runs on devices of any MTU.
#[xdp(frags)]
#[inline(always)]
pub fn vipgate_xdp(ctx: XdpContext) -> u32 {
    pipeline::run(XdpPacket::<NATIVE>::new(ctx)) as u32
}

/// The same where the kernel's stack runs it, on whole frames: what takes frames in several buffers gets them there in copies
/// whose link-layer header every TC program behind it misses.
#[xdp]
#[inline(always)]
pub fn vipgate_generic(ctx: XdpContext) -> u32 {
    pipeline::run(XdpPacket::<GENERIC>::new(ctx)) as u32
}

#[classifier]
#[inline(always)]
pub fn vipgate_tc(ctx: TcContext) -> i32 {
    pipeline::run(TcPacket(ctx))
}

/// At the ingress of the ports whose program is the XDP one: takes what that hands over, and leaves alone all else.
#[classifier]
#[inline(always)]
pub fn vipgate_behind(ctx: TcContext) -> i32 {
    let packet = TcPacket(ctx);
    match packet.handed_over() {
        0 => TC_ACT_UNSPEC,
        mark => pipeline::run_marked(packet, mark == BY_NEIGHBOUR),
    }
}

/// At the end of the queues' device: sends on what comes out of them.
#[classifier]
pub fn vipgate_queue(ctx: TcContext) -> i32 {
    let mut packet = TcPacket(ctx);
    let number = packet.released();
    meter::dequeue(&mut packet, number)
}

/// At the ports' egress, whichever hook carries the traffic: turns back the quotes in the stack's own ICMP errors, stops what
/// must not leave with its source, and sees to it that the router's own connections come first.
#[classifier]
#[inline(always)]
pub fn vipgate_egress(ctx: TcContext) -> i32 {
    let mut packet = TcPacket(ctx);
    // Another device's, which has its own program.
    if packet.is_in_vlan() {
        return TC_ACT_UNSPEC;
    }
    let mut outer = Rewritten::UNSET;
    let answer = icmp::translate_error(&mut packet, true, &mut outer);
    if packet.is_local() {
        outward::reclaim_port(&mut packet);
    } else if answer != icmp::DIRECT && outward::is_untranslated(&mut packet) {
        return count::verdict(&packet, Reason::Untranslated);
    }
    TC_ACT_UNSPEC
}

/// Asked by the stack of what it is given for a socket of the router that listens, or takes any datagram: for a VIP it finds none,
/// and refuses. So it does not matter on which addresses the router's services listen. What a socket is connected for comes
/// to it before. What is for a service's port the pipeline has counted, and why it went to the stack.
#[sk_lookup]
pub fn vipgate_sockets(ctx: SkLookupContext) -> u32 {
    const INET: u32 = 2;
    const DROP: u32 = 0;
    const PASS: u32 = 1;
    // SAFETY: reading fields of the running program's context.
    let (family, dst, protocol, port) = unsafe {
        let asked = ctx.lookup;
        ((*asked).family, (*asked).local_ip4, (*asked).protocol, (*asked).local_port)
    };
    if family == INET && service::is_vip_alone(dst) {
        if !service::has_port(dst, protocol as u8, (port as u16).to_be()) {
            count::reason_only(Reason::PortClosed);
        }
        return DROP;
    }
    PASS
}

/// Counts what the XDP program redirected and the kernel refused: the program itself has ended by then, and nobody else is told.
#[raw_tracepoint(tracepoint = "xdp_redirect_err")]
pub fn vipgate_redirects(ctx: RawTracePointContext) -> i32 {
    // The tracepoint's arguments: device, program, target, error, and the type, number and index of the map.
    const MAP: usize = 5;
    let map: u32 = ctx.arg(MAP);
    if map != 0 && CONFIG.get(0).is_some_and(|config| config.tx_ports == map) {
        count::reason_only(Reason::RedirectFailed);
    }
    0
}

/// Tells the controller the kernel's time: a test run returns the low 32 bits of jiffies.
#[xdp]
pub fn vipgate_clock(_ctx: XdpContext) -> u32 {
    clock::jiffies()
}
