//! Clients in a backend's own network, or on the backend itself: the backend would answer them directly, past the
//! router, from an address that they did not connect to (RFC 4787, section 6). So their connections get the router's address in
//! that network as their source, and one of its ports (`ports`).

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_SRC};
use vipgate_abi::{Be32, flow::FlowKey};

use crate::{
    packet::Packet,
    route::{self, FibContext, FibQuery},
    types::Rewritten,
};

/// Gives a new connection the router's address as its source, if the answers would not come back otherwise. Returns true if
/// so: then it needs a port of that address.
///
/// The kernel is asked only if the packet came by the device that leads to the backend, or if that device is not known.
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

/// The router's address in the network of one device to which both hosts are directly connected. 0 if there is none, or if the
/// kernel is older than Linux 6.7 and does not report it.
#[inline(never)]
fn router_address(context: FibContext, client: Be32, backend: Be32) -> Be32 {
    let (out, _, _) = ask(context, backend, 0);
    let (back, next_hop, source) = ask(context, client, BPF_FIB_LOOKUP_SRC);
    if out != 0 && out == back && next_hop == client { source } else { 0 }
}

/// Asks the kernel for a route. Returns the device (0 if there is none), the next hop, and the source address if the flags
/// ask for it.
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
