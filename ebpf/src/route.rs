//! Stage 8, the slow half: where a flow's packets leave, asked of the kernel's routing and neighbour tables.

use core::mem::zeroed;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup as FibLookup,
    },
    helpers::bpf_fib_lookup,
};
use vipgate_abi::{
    Be16, Be32,
    flow::{Flow, FlowKey},
    port,
};

use crate::{
    maps::PORT_NUMBERS,
    packet::Packet,
    pipeline::{Arrival, Work},
};

/// AF_INET.
const INET: u8 = 2;

/// The way out of a flow.
#[derive(Clone, Copy)]
pub struct Route {
    pub port: u16,
    pub next_hop: [u8; 6],
}

/// What a packet looks like once it is rewritten.
#[derive(Clone, Copy)]
pub struct Rewritten {
    pub src: Be32,
    pub dst: Be32,
    pub sport: Be16,
    pub dport: Be16,
}

impl Rewritten {
    #[inline(always)]
    pub fn by(flow: &Flow) -> Self {
        Self { src: flow.new_src, dst: flow.new_dst, sport: flow.new_sport, dport: flow.new_dport }
    }

    /// The key of the other direction, whose packets answer this one.
    #[inline(always)]
    pub fn reply_key(&self, key: &FlowKey) -> FlowKey {
        FlowKey { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, ..*key }
    }
}

/// Finds the way out for what a packet becomes: fills in the route, and gives the epoch to store with it: one that is
/// always old when the answer may soon change. None: the kernel has no route, or forbids it.
///
/// Without a neighbour entry, or where the way out carries no program, the way is the stack: it resolves the
/// neighbour, and the next packet asks again.
#[inline(always)]
pub fn find<P: Packet>(packet: &P, arrival: &Arrival, work: &mut Work) -> Option<u16> {
    match ask(packet, arrival.headers.key.protocol, work) {
        NO_WAY => None,
        LASTING => Some(arrival.config.epoch as u16),
        _ => Some(0),
    }
}

/// [`find`] for a packet without a flow; false: there is no way.
#[inline(always)]
pub fn ask_way<P: Packet>(packet: &P, protocol: u8, work: &mut Work) -> bool {
    ask(packet, protocol, work) != NO_WAY
}

const NO_WAY: u32 = 0;
const LASTING: u32 = 1;
const PASSING: u32 = 2;

/// Asks the kernel.
#[inline(never)]
fn ask<P: Packet>(packet: &P, protocol: u8, work: &mut Work) -> u32 {
    work.route = Route { port: port::STACK, next_hop: [0; 6] };
    let rewritten = &work.rewritten;
    // SAFETY: a plain C struct of integers and unions of them.
    let mut fib: FibLookup = unsafe { zeroed() };
    fib.family = INET;
    fib.l4_protocol = protocol;
    fib.sport = rewritten.sport;
    fib.dport = rewritten.dport;
    fib.ifindex = packet.ifindex();
    fib.__bindgen_anon_3.ipv4_src = rewritten.src;
    fib.__bindgen_anon_4.ipv4_dst = rewritten.dst;
    // SAFETY: the context is the running program's, the parameters live on the stack.
    let answer = unsafe { bpf_fib_lookup(packet.context(), &mut fib, size_of::<FibLookup>() as i32, 0) } as u32;
    match answer {
        // FRAG_NEEDED: the way out is known, the packet does not fit it; that is checked for each packet anyway.
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            let number = PORT_NUMBERS.get_ptr(&fib.ifindex).map_or(port::STACK, |number| {
                // SAFETY: a value of PORT_NUMBERS; elements are never removed while a program runs on the device.
                unsafe { *number as u16 }
            });
            work.route = Route { port: number, next_hop: fib.dmac };
            LASTING
        }
        BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => NO_WAY,
        _ => PASSING,
    }
}
