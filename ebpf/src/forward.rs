//! Stages 6 to 8: a packet of a known flow is metered, rewritten and sent.
//!
//! Everything is read from the flow when it is needed. If another CPU claims the slot meanwhile, the packet may be a mixture of
//! both flows, and is dropped. Only a half-open, a closed or an idle flow can lose its slot.

use core::ptr;

use vipgate_abi::{
    checksum::{delta16, delta32, update},
    counters::Reason,
    flow::Flow,
    interface::Interface,
};

use crate::{
    count, fragment, meter, odd_headers,
    packet::{ETH_LEN, L4_OFFSET, Packet, load, store, store_address},
    parse::{DONT_FRAGMENT, Headers},
    refused, route,
    table::Slot,
    types::Rewritten,
    verifier::opaque,
};

/// Counts the packet against its bandwidth limit, rewrites it as its flow says, counts it, and sends it out of the flow's
/// interface or hands it to the stack, which routes it.
///
/// If the stack has to answer with an ICMP error, the sender must recognise its own packet in it: `refused` says what the stack
/// gets then.
#[inline(always)]
pub fn forward<P: Packet>(packet: &mut P, headers: &Headers, slot: &Slot) -> Result<i32, Reason> {
    if headers.is_first != 0 {
        // Before another hook gets it: the fragments that follow may come to this one.
        fragment::remember(headers);
    }
    let flow = slot.flow;
    let (number, interface) = egress(packet, flow)?;
    meter::charge(packet, headers, slot)?;
    count_packet(packet, headers, slot);
    let data = headers.data;
    let mut leaves = Err(Reason::NoNeighbour);
    let mut refusal = None;
    let mut ip_delta = 0;
    if let Some(interface) = interface {
        if packet.exceeds(headers.ip_len, headers.header_len as u32, interface.mtu) {
            // SAFETY: parse checked the headers' bounds.
            let (is_over, may_be_cut) = unsafe { (is_over(data), may_be_cut(data)) };
            leaves = Err(Reason::OverMtu);
            if is_over {
                refusal = Some(Reason::TtlExpired);
            } else if !may_be_cut {
                refusal = Some(Reason::OverMtu);
            }
        } else if let Some(delta) =
            // SAFETY: parse checked the headers' bounds, `flow` points into FLOWS.
            unsafe { route::forward_headers(data, interface, ptr::addr_of!((*flow).hop).cast()) }
        {
            ip_delta = delta;
            leaves = Ok(interface);
        } else {
            refusal = Some(Reason::TtlExpired);
        }
    // SAFETY: `flow` points into FLOWS.
    } else if unsafe { (*flow).new_src } != headers.key.src {
        refusal = stack_reject_reason(packet, data, headers.ip_len, headers.header_len as u32, flow);
    }
    // SAFETY: `flow` points into FLOWS.
    let mut new = unsafe { Rewritten::by(&*flow) };
    if !slot.holds() {
        return Err(Reason::FlowEnded);
    }
    if let Some(reason) = refusal {
        leaves = Err(reason);
        if !refused::remember_destination(slot) {
            return Err(reason);
        }
        (new.src, new.sport) = (headers.key.src, headers.key.sport);
    }
    if leaves.is_ok() && packet.queue().is_congested() {
        // SAFETY: parse checked the headers' bounds.
        ip_delta += unsafe { meter::mark_ce(headers.data) };
    }
    rewrite(packet, headers, &new, ip_delta, leaves.is_ok());
    let interface = leaves?;
    if P::QUEUES && packet.is_by_neighbour() {
        return Ok(packet.send_by_neighbour(interface));
    }
    let queue = packet.queue();
    Ok(if queue.is_none() { packet.send(number, interface) } else { packet.enqueue(number, queue) })
}

/// The flow's interface and its number; no interface if the stack has to send the packet. An error if another hook has to.
#[inline(always)]
fn egress<P: Packet>(packet: &mut P, flow: *mut Flow) -> Result<(u16, Option<&'static Interface>), Reason> {
    // SAFETY: `flow` points into FLOWS; rule 6.
    let (number, is_unresolved) = unsafe { ((*flow).target.interface(), (*flow).hop.is_unresolved()) };
    let mut interface = route::interface(number);
    if is_unresolved {
        packet.set_by_neighbour(true);
    }
    if !P::QUEUES && interface.is_some_and(|interface| packet.is_by_neighbour() || !interface.takes_frames()) {
        if packet.can_hand_over() {
            return Err(if packet.hand_over() { Reason::HandedOver } else { Reason::Unroutable });
        }
        if is_unresolved || interface.is_some_and(|interface| !interface.takes_frames()) {
            // The stack can do it, too.
            interface = None;
        }
    }
    Ok((number, interface))
}

/// Counts the packet for its flow and its backend.
#[inline(always)]
fn count_packet<P: Packet>(packet: &P, headers: &Headers, slot: &Slot) {
    let flow = slot.flow;
    let outward = slot.mark.is_outward();
    let frames = packet.frames(headers.ip_len, headers.header_len as u32);
    let bytes = headers.wire_bytes(frames);
    // SAFETY: `flow` points into FLOWS; rule 6.
    let backend = unsafe {
        (*flow).packets = (*flow).packets.wrapping_add(frames);
        (*flow).volume = (*flow).volume.plus(bytes as u64);
        (*flow).target.backend()
    };
    count::traffic(backend, outward, frames, bytes);
}

/// True if the packet's time to live is over.
///
/// # Safety
/// The IPv4 header's fixed part is directly readable behind the Ethernet header at `data`.
#[inline(always)]
unsafe fn is_over(data: usize) -> bool {
    // SAFETY: as the caller promises. The word is TTL and protocol.
    unsafe { u16::from_le(load(data + ETH_LEN + 8)) as u8 <= 1 }
}

/// True if a packet that does not fit may be sent in fragments.
///
/// # Safety
/// As [`is_over`].
#[inline(always)]
unsafe fn may_be_cut(data: usize) -> bool {
    // SAFETY: as the caller promises.
    unsafe { load::<u16>(data + ETH_LEN + 6) & DONT_FRAGMENT == 0 }
}

/// Why the stack would refuse a packet that it gets because no neighbour is known. Asked only of packets whose source
/// becomes the router's: the stack would send the ICMP error to itself.
#[inline(never)]
fn stack_reject_reason<P: Packet>(
    packet: &P,
    data: usize,
    ip_len: u16,
    header_len: u32,
    flow: *const Flow,
) -> Option<Reason> {
    // SAFETY: parse checked the headers' bounds.
    let (is_over, may_be_cut, protocol) = unsafe { (is_over(data), may_be_cut(data), load(data + ETH_LEN + 9)) };
    if is_over {
        return Some(Reason::TtlExpired);
    }
    if may_be_cut {
        return None;
    }
    // SAFETY: `flow` points into FLOWS.
    let new = unsafe { Rewritten::by(&*flow) };
    let interface = route::interface_towards(packet, protocol, &new)?;
    packet.exceeds(ip_len, header_len, interface.mtu).then_some(Reason::OverMtu)
}

/// Rewrites addresses, ports and both checksums, incrementally (RFC 1624). The packet `leaves` or goes up the stack;
/// `ip_delta` is by what the IPv4 header's checksum has changed so far.
#[inline(always)]
fn rewrite<P: Packet>(packet: &mut P, headers: &Headers, new: &Rewritten, ip_delta: u64, leaves: bool) {
    let data = headers.data;
    let key = &headers.key;
    let addresses = delta32(key.src, new.src) + delta32(key.dst, new.dst);
    let ports = delta16(key.sport, new.sport) + delta16(key.dport, new.dport);
    // SAFETY: parse checked the headers' bounds.
    unsafe {
        let checksum_at = data + ETH_LEN + 10;
        store(checksum_at, update(load(checksum_at), addresses + ip_delta));
        store_address(data + ETH_LEN + 12, new.src);
        store_address(data + ETH_LEN + 16, new.dst);
        if headers.l4_len == 0 {
            let ports = new.sport as u32 | (new.dport as u32) << 16;
            opaque(odd_headers::rewrite(packet, data, ports, addresses, leaves));
            return;
        }
        store(data + L4_OFFSET, new.sport);
        store(data + L4_OFFSET + 2, new.dport);
        let offset = headers.checksum_offset();
        packet.update_l4_checksum(data + offset, offset, headers.is_udp(), addresses, ports);
    }
}
