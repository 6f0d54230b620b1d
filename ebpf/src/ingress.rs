//! Packets that must not come in, whatever they are for. The checks run when a flow opens, and for packets that differ from
//! what the flow expects: all other packets of a flow cost one comparison.

use core::{
    mem::{MaybeUninit, offset_of},
    ptr,
};

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT,
};
use vipgate_abi::{
    Be32,
    counters::Reason,
    flow::{Flow, FlowKey},
};

use crate::{
    address_filter, atomic,
    maps::CONFIG,
    packet::{ETH_LEN, L4_OFFSET, Packet, load_address},
    parse::{IPV4, ethertype},
    route::{self, FibContext, FibQuery},
    verifier::opaque,
    vlan,
};

/// True for a packet whose source no host can have (RFC 1812, section 5.3.7), or whose source is one of the router's
/// addresses or VIPs. The kernel is asked only about sources in the address filter. It does not distinguish its own
/// addresses from hosts without a route, which would not get an answer either.
#[inline(always)]
pub fn is_martian<P: Packet>(packet: &P, key: &FlowKey) -> bool {
    is_invalid_source(key.src) || key.src == key.dst || is_own(packet, key.src)
}

/// True for the router's addresses: VIPs and its own.
#[inline(always)]
pub fn is_own<P: Packet>(packet: &P, addr: Be32) -> bool {
    address_filter::of(addr).may_be_own() && device_towards(FibContext::of(packet), addr) == NO_DEVICE
}

/// Checks a packet that the stack would get as it came. Returns the reason to drop it, or `reason` if there is none. From
/// 0.0.0.0/8 the stack accepts broadcasts that ask for an address (DHCP), and nothing else.
///
/// The stack would take a packet from one of the router's addresses for its own: it accepts such sources (`accept_local`),
/// because packets that the pipeline hands to it may have them. For the same reason its reverse-path filtering is loose.
/// That still drops packets from sources without a route, which is left to the stack, so that a DHCP client can hear a
/// server to which there is no route yet.
#[inline(always)]
pub fn final_reason<P: Packet>(packet: &P, reason: Reason) -> Reason {
    let end = packet.data_end();
    let (data, _) = vlan::behind_tag(packet.data(), end);
    if data + L4_OFFSET > end || ethertype(data) != IPV4 {
        return reason;
    }
    // SAFETY: within the IPv4 header's fixed part, checked just above.
    let (src, dst) = unsafe { (load_address(data + ETH_LEN + 12), load_address(data + ETH_LEN + 16)) };
    if !address_filter::of(src).may_be_own() && !is_checked() {
        return reason;
    }
    match packet.reverse_path(src, dst) {
        OWN => Reason::Martian,
        ELSEWHERE if !is_this_network(src) => Reason::ReversePath,
        _ => reason,
    }
}

/// True for a packet that comes by a device with strict reverse-path filtering, if the kernel's route to the source is by
/// another device.
#[inline(always)]
pub fn is_off_path<P: Packet>(packet: &P, src: Be32, dst: Be32) -> bool {
    is_checked() && packet.reverse_path(src, dst) != ON_PATH
}

/// False if no device has strict reverse-path filtering.
#[inline(always)]
fn is_checked() -> bool {
    CONFIG.get(0).is_some_and(|config| config.strict != 0)
}

/// What [`reverse_path`] returns: the packet may come by its device.
const ON_PATH: u32 = 0;
/// The route to its source is by another device.
const ELSEWHERE: u32 = 1;
/// There is no route to its source.
const NO_PATH: u32 = 2;
/// Its source is one of the router's addresses.
const OWN: u32 = 3;

/// Number of lookups for a route that has several next hops.
const MOST_LOOKUPS: u32 = 16;

/// Whether a packet from `src` to `dst` may come by its device, as the kernel decides if `rp_filter` is 1: any next hop of
/// the route back to `src` is by that device. A lookup returns one next hop for each pair of addresses. So lookups with
/// other addresses follow, unless the kernel has no route by this device at all.
#[inline(always)]
pub fn reverse_path<P: Packet>(packet: &P, src: Be32, dst: Be32) -> u32 {
    if is_own(packet, src) {
        return OWN;
    }
    let context = FibContext::of(packet);
    if route::interface_of(context.ifindex).is_none_or(|interface| !interface.is_strict()) {
        return ON_PATH;
    }
    let known = way_towards(context, dst, src, 0) as u32;
    if known == context.ifindex {
        return ON_PATH;
    }
    if known == NO_DEVICE {
        return NO_PATH;
    }
    if way_towards(context, dst, src, BPF_FIB_LOOKUP_OUTPUT) as u32 == NO_DEVICE {
        return ELSEWHERE;
    }
    let mut from = dst;
    let mut lookups = 0;
    while lookups < MOST_LOOKUPS {
        from = from.wrapping_add(SOURCE_STEP);
        if way_towards(context, from, src, 0) as u32 == context.ifindex {
            return ON_PATH;
        }
        lookups += 1;
    }
    ELSEWHERE
}

/// Step from one lookup's address to the next.
const SOURCE_STEP: u32 = 0x9e37_79b1;

/// True for 0.0.0.0/8, 127.0.0.0/8, and 224.0.0.0 to 255.255.255.255.
#[inline(always)]
fn is_invalid_source(src: Be32) -> bool {
    let [first, ..] = src.to_ne_bytes();
    first == 0 || first == 127 || first >= 224
}

/// True for 0.0.0.0/8.
#[inline(always)]
fn is_this_network(src: Be32) -> bool {
    src.to_ne_bytes()[0] == 0
}

/// A device as a flow stores it ([`Flow::from`]).
#[inline(always)]
pub const fn device(ifindex: u32) -> u16 {
    ifindex as u16
}

/// True for a packet of a known flow that comes by another device than the flow's. For answers also if the flow has no
/// device yet.
#[inline(always)]
pub fn is_unexpected_device<P: Packet>(packet: &P, from: u16, is_reply: bool) -> bool {
    from != device(packet.ifindex()) && (from != 0 || is_reply)
}

/// Checks such a packet: 1 if the kernel now routes to its sender by that device, which the flow then stores; 0 if it is
/// spoofed.
#[inline(never)]
pub fn has_moved(context: FibContext, flow: *mut Flow, src: Be32) -> u32 {
    // The word holds device and generation, so it seldom gets into another flow that has claimed the slot since. Such a
    // flow would check again. SAFETY: `flow` points into FLOWS; both are halves of an aligned word.
    let word = unsafe { ptr::addr_of_mut!((*flow).from).cast::<u32>() };
    // SAFETY: as above.
    let held = unsafe { ptr::read_volatile(word) };
    let by = context.ifindex;
    if device_towards(context, src) != by {
        return opaque(0);
    }
    // SAFETY: as above.
    unsafe { atomic::compare_and_swap32(word, held, held & 0xffff_0000 | device(by) as u32) };
    opaque(1)
}

const _: () =
    assert!(offset_of!(Flow, from).is_multiple_of(4) && offset_of!(Flow, generation) == offset_of!(Flow, from) + 2);

/// True for an ICMP error by `sender` that cannot be about a packet from `src` to `dst` (RFC 5927, section 4): it comes by
/// another device than the one by which the kernel sends such packets, or `dst` is directly connected and `sender` is
/// another host.
#[inline(always)]
pub fn is_forged<P: Packet>(packet: &P, sender: Be32, src: Be32, dst: Be32) -> bool {
    let way = way_towards(FibContext::of(packet), src, dst, 0);
    is_invalid_source(sender)
        || way as u32 != packet.ifindex()
        || (way & DIRECT != 0 && sender != dst)
        || is_off_path(packet, sender, src)
}

/// No device.
const NO_DEVICE: u32 = 0;

/// The device by which the kernel would send to a host, even if no neighbour is known; [`NO_DEVICE`] if there is none, as
/// for the router itself.
#[inline(always)]
fn device_towards(context: FibContext, host: Be32) -> u32 {
    way_towards(context, 0, host, 0) as u32
}

/// In what [`way_towards`] returns: the host is on the device's link, without a gateway.
const DIRECT: u64 = 1 << 32;

/// [`device_towards`] for packets from `src` (0 for any), and [`DIRECT`]. The flags are `bpf_fib_lookup`'s.
#[inline(never)]
fn way_towards(context: FibContext, src: Be32, host: Be32, flags: u32) -> u64 {
    let mut room = MaybeUninit::uninit();
    let query = FibQuery::begin(&mut room, context);
    let fib = query.fib();
    fib.__bindgen_anon_3.ipv4_src = src;
    fib.__bindgen_anon_4.ipv4_dst = host;
    let answer = query.run(context, flags);
    let fib = query.fib();
    match answer {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_FRAG_NEEDED | BPF_FIB_LKUP_RET_NO_NEIGH => {
            // SAFETY: a union of plain integers.
            let next_hop = unsafe { fib.__bindgen_anon_4.ipv4_dst };
            fib.ifindex as u64 | if next_hop == host { DIRECT } else { 0 }
        }
        _ => NO_DEVICE as u64,
    }
}
