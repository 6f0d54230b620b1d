//! What must not come in, whatever it is for. All of it is asked when a flow opens, or where a packet is not as it was then:
//! what goes on as it began costs a comparison.

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

/// True for a packet whose source no host can have (RFC 1812, section 5.3.7), or whose source is the router's: a VIP, that it is
/// for or another, or an address of its own. The kernel is asked about those alone that may be; of these it cannot tell whom it
/// has no way to from itself. Such a host would not get an answer either.
#[inline(always)]
pub fn is_martian<P: Packet>(packet: &P, key: &FlowKey) -> bool {
    is_invalid_source(key.src) || key.src == key.dst || is_own(packet, key.src)
}

/// True for the router's addresses: VIPs and its own.
#[inline(always)]
pub fn is_own<P: Packet>(packet: &P, addr: Be32) -> bool {
    address_filter::of(addr).may_be_own() && device_towards(FibContext::of(packet), addr) == NO_DEVICE
}

/// Why a packet that the stack would get as it came ends here; `reason`: it does not. Of 0.0.0.0/8 the stack takes what asks all
/// hosts for an address (DHCP), and nothing else.
///
/// From one of the router's addresses the stack would take it, and for the router's own: it is told to accept such sources
/// (`accept_local`), because what the pipeline hands over to it may have one. For the same reason its reverse-path filtering is
/// loose, which still drops what it has no way to: that stays its part, so that a DHCP client hears a server to which there is no
/// way yet.
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

/// True for a packet that comes by a device with strict reverse-path filtering, and not from where the kernel sends to its source.
#[inline(always)]
pub fn is_off_path<P: Packet>(packet: &P, src: Be32, dst: Be32) -> bool {
    is_checked() && packet.reverse_path(src, dst) != ON_PATH
}

/// False: no device has strict reverse-path filtering.
#[inline(always)]
fn is_checked() -> bool {
    CONFIG.get(0).is_some_and(|config| config.strict != 0)
}

/// [`reverse_path`]'s answers: the packet may come by its device; the kernel sends to its source by another one; by none; the source is
/// the router's.
const ON_PATH: u32 = 0;
const ELSEWHERE: u32 = 1;
const NO_PATH: u32 = 2;
const OWN: u32 = 3;

/// How often the kernel is asked for one of the next hops of a route that has several.
const MOST_LOOKUPS: u32 = 16;

/// Whether a packet from `src` to `dst` may come by its device, as the kernel decides where `rp_filter` is 1: the route back to `src`
/// leads there, by any of its next hops. The kernel tells one of these for each pair of addresses, so that it is asked about
/// others, unless it says that no route of any kind leads there by this device.
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

/// What leads from one address to the next that is asked about.
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

/// A device as a flow remembers it ([`Flow::from`]).
#[inline(always)]
pub const fn device(ifindex: u32) -> u16 {
    ifindex as u16
}

/// True for a packet of a known flow that comes by another device than the one that the flow remembers; of answers, also where
/// that is not known yet.
#[inline(always)]
pub fn is_unexpected_device<P: Packet>(packet: &P, from: u16, is_reply: bool) -> bool {
    from != device(packet.ifindex()) && (from != 0 || is_reply)
}

/// Asked of such a packet: 1 if its sender is where it comes from now, as the kernel routes, and the flow takes that in; 0:
/// somebody else sent it.
#[inline(never)]
pub fn has_moved(context: FibContext, flow: *mut Flow, src: Be32) -> u32 {
    // The device and the generation, so that it seldom comes to another flow that has claimed the slot since: that one asks in its
    // turn.
    // SAFETY: `flow` points into FLOWS; both are halves of an aligned word.
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

/// True for an ICMP error by `sender` that cannot be about a packet from `src` to `dst` (RFC 5927, section 4): it does not come
/// from where the kernel sends such packets, or from another host than theirs, though there is none on the way.
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

/// The device by which the kernel would send to a host, known without a neighbour, too; [`NO_DEVICE`]: by none, as to the
/// router itself.
#[inline(always)]
fn device_towards(context: FibContext, host: Be32) -> u32 {
    way_towards(context, 0, host, 0) as u32
}

/// In a way: the host is on the device's link, without a gateway before it.
const DIRECT: u64 = 1 << 32;

/// [`device_towards`] for packets from `src`, 0: from anywhere; above it [`DIRECT`]. The flags are the helper's.
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
