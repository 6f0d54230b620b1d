//! Packets that the stack refuses with an ICMP error: those that are larger than the MTU and must not be fragmented, and
//! those whose time to live is over.
//!
//! The stack sends the error to the source that it sees. So the packet keeps its original source, because the translated
//! one may be the router's own. But it gets the translated destination, because the original one may be the router's own,
//! and because the route lookup must be the same. The original destination is remembered for a second, so that the error's
//! quote can be translated back (`icmp`).

use vipgate_abi::{flow::FlowKey, refused::OriginalDestination};

use crate::{
    clock::jiffies,
    maps::{CONFIG, REFUSED},
    secondary,
    table::Slot,
    types::Rewritten,
    verifier::opaque,
};

/// Remembers the original destination of a packet of this flow, which the stack gets with the translated one. False if both
/// are the same.
#[inline(always)]
pub fn remember_destination(slot: &Slot) -> bool {
    opaque(remember_original(slot.index)) != 0
}

/// The original of a packet with this key, as the stack saw it. `None` if the stack refused no such packet lately.
#[inline(always)]
pub fn original(shown: &FlowKey) -> Option<Rewritten> {
    let [addresses, rest] = shown.words();
    let sent = recall_original(addresses, rest);
    let rewritten =
        Rewritten { src: shown.src, sport: shown.sport, dst: (sent >> 32) as u32, dport: (sent >> 16) as u16 };
    (sent & KNOWN != 0).then_some(rewritten)
}

/// In what [`recall_original`] returns, below address and port: there was such a packet.
const KNOWN: u64 = 1;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remember_original(index: u32) -> u32 {
    let Some(flow) = secondary::flow(index) else {
        return opaque(0);
    };
    // SAFETY: `flow` points into FLOWS; if another CPU has claimed the slot, `forward` drops the packet.
    let (came, dst, dport) = unsafe { ((*flow).key, (*flow).new_dst, (*flow).new_dport) };
    if came.dst == dst && came.dport == dport {
        return opaque(0);
    }
    let sent = OriginalDestination { dst: came.dst, dport: came.dport, reserved: 0, seen: jiffies() };
    opaque(REFUSED.insert(&FlowKey { dst, dport, ..came }, &sent, 0).is_ok() as u32)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn recall_original(addresses: u64, rest: u64) -> u64 {
    const LIFETIME: u64 = 1_000_000_000;
    let (Some(sent), Some(config)) = (REFUSED.get_ptr(&FlowKey::of_words([addresses, rest])), CONFIG.get(0)) else {
        return 0;
    };
    // SAFETY: a value of REFUSED; one that is being evicted still reads as some packet's, and its age is checked.
    let sent = unsafe { *sent };
    let age = jiffies().wrapping_sub(sent.seen) as u64 * config.tick as u64;
    if age > LIFETIME { 0 } else { (sent.dst as u64) << 32 | (sent.dport as u64) << 16 | KNOWN }
}
