//! Clients in a backend's own network, or on the backend itself: their answers would go to them directly, past the
//! router, from an address that they never asked (RFC 4787, section 6). So their connections get a source of the
//! router's: its address in that network, and a port there (`ports`).

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_SRC};
use vipgate_abi::{Be32, flow::FlowKey};

use crate::{
    packet::Packet,
    route::{self, FibContext, FibQuery},
    types::Rewritten,
};

/// Gives a new connection a source of the router's, if its answers would not come back otherwise. True: it needs a port there.
///
/// The packet came in by the device that leads to the backend, or nothing is known of the latter: only then the kernel
/// is asked.
#[inline(always)]
pub fn translate<P: Packet>(packet: &P, key: &FlowKey, egress: u16, rewritten: &mut Rewritten) -> bool {
    if route::interface(egress).is_some_and(|interface| interface.ifindex != packet.ifindex()) {
        return false;
    }
    let source = router_address(FibContext::of(packet), key.src, rewritten.dst);
    if source == 0 {
        return false;
    }
    rewritten.src = source;
    true
}

/// The router's address in the network that both are directly connected to by one device; 0: there is none, or the
/// kernel (before Linux 6.7) cannot tell.
#[inline(never)]
fn router_address(context: FibContext, client: Be32, backend: Be32) -> Be32 {
    let (out, _, _) = ask(context, backend, 0);
    let (back, next_hop, source) = ask(context, client, BPF_FIB_LOOKUP_SRC);
    if out != 0 && out == back && next_hop == client { source } else { 0 }
}

/// Asks the kernel for a way: device (0: none), next hop, and the source address where the flags want it.
#[inline(always)]
fn ask(context: FibContext, dst: Be32, flags: u32) -> (u32, Be32, Be32) {
    let mut room = MaybeUninit::uninit();
    let query = FibQuery::begin(&mut room, context);
    let fib = query.fib();
    fib.__bindgen_anon_4.ipv4_dst = dst;
    let answer = query.run(context, flags);
    let fib = query.fib();
    if answer != BPF_FIB_LKUP_RET_SUCCESS && answer != BPF_FIB_LKUP_RET_NO_NEIGH {
        return (0, 0, 0);
    }
    // SAFETY: unions of plain integers.
    unsafe { (fib.ifindex, fib.__bindgen_anon_4.ipv4_dst, fib.__bindgen_anon_3.ipv4_src) }
}
