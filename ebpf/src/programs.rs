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

/// Accepts frames in several buffers, so that native XDP runs on devices of any MTU.
#[xdp(frags)]
#[inline(always)]
pub fn vipgate_xdp(ctx: XdpContext) -> u32 {
    pipeline::run(XdpPacket::<NATIVE>::new(ctx)) as u32
}

/// The same for generic XDP, where the kernel's stack runs it on whole frames. A program that accepts several buffers would get
/// copies there, and TC programs after it would not see the link-layer header.
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

/// At the ingress of interfaces that have the XDP program: takes packets that XDP hands over, and ignores all others.
#[classifier]
#[inline(always)]
pub fn vipgate_behind(ctx: TcContext) -> i32 {
    let packet = TcPacket(ctx);
    match packet.handed_over() {
        0 => TC_ACT_UNSPEC,
        mark => pipeline::run_marked(packet, mark == BY_NEIGHBOUR),
    }
}

/// At the other end of the queues' device: sends the packets that come out of the queues.
#[classifier]
pub fn vipgate_queue(ctx: TcContext) -> i32 {
    let mut packet = TcPacket(ctx);
    let number = packet.released();
    meter::dequeue(&mut packet, number)
}

/// At the interfaces' egress, whichever hook carries the traffic: translates the quotes in the stack's ICMP errors, drops
/// packets that must not leave with their source, and gives the router's own connections precedence.
#[classifier]
#[inline(always)]
pub fn vipgate_egress(ctx: TcContext) -> i32 {
    let mut packet = TcPacket(ctx);
    // The packet belongs to a VLAN device, which has its own program.
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

/// The stack runs this program before it looks for a listening socket, or one that takes any datagram. For a VIP it makes
/// the stack find none, and refuse the packet, whichever addresses the router's own services listen on. Connected sockets
/// are found before this program runs. Packets to a service's port were counted by the pipeline.
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

/// Counts packets that the XDP program redirected and the kernel refused: the program has ended by then, and only the
/// tracepoint shows it.
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

/// Returns the kernel's time to the controller: a test run returns the low 32 bits of jiffies.
#[xdp]
pub fn vipgate_clock(_ctx: XdpContext) -> u32 {
    clock::jiffies()
}
