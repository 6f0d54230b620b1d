//! Packets that the stack refuses with an ICMP error: those that are larger than the way out takes and must not be cut, and
//! those whose time to live is over.
//!
//! The stack tells the sender that it sees, of the packet that it sees. So it gets the source that the packet came with: the one
//! that it would have had may be the router's own, to whom nobody tells anything. And it gets the destination that the
//! packet would have had, since the one that it came with may be the router's, too, and so that it is asked for the same
//! way. What the destination was is remembered for a moment, in which the error's quote is turned back (`icmp`).

use vipgate_abi::{flow::FlowKey, refused::OriginalDestination};

use crate::{
    clock::jiffies,
    maps::{CONFIG, REFUSED},
    secondary,
    table::Slot,
    types::Rewritten,
    verifier::opaque,
};

/// Remembers the destination of a packet of this flow, which the stack gets with its own source and the destination that it would
/// have had; false: it came with that one.
#[inline(always)]
pub fn remember_destination(slot: &Slot) -> bool {
    opaque(remember_original(slot.index)) != 0
}

/// The packet with this key, which the stack refused, as it came; None: it was no such packet, or that is long ago.
#[inline(always)]
pub fn original(shown: &FlowKey) -> Option<Rewritten> {
    let [addresses, rest] = shown.words();
    let sent = recall_original(addresses, rest);
    let rewritten =
        Rewritten { src: shown.src, sport: shown.sport, dst: (sent >> 32) as u32, dport: (sent >> 16) as u16 };
    (sent & KNOWN != 0).then_some(rewritten)
}

/// In [`recall_original`]'s answer, below address and port: it was such a packet.
const KNOWN: u64 = 1;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remember_original(index: u32) -> u32 {
    let Some(flow) = secondary::flow(index) else {
        return opaque(0);
    };
    // SAFETY: `flow` points into FLOWS; whoever asks finds out whether another CPU has claimed the slot.
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
