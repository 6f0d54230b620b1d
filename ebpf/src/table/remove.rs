//! Removes connections, and updates the loads that count them.

use core::ptr;

use vipgate_abi::flow::{Mark, State, Word};

use super::{
    claim::{claimed, end_evicted, publish, take},
    slot::{Slot, read_mark, slot, word},
};
use crate::{
    load::{self, Counter},
    secondary,
    verifier::opaque,
};

/// The other direction of the flow in the slot `own`, which stores it as `peer`. `None` if that slot belongs to another
/// connection or to none. The state of the returned slot may be `Busy` or `Empty`. The slot is read before the check: if
/// another flow claims it right now, its state cannot be changed any more (rule 1).
#[inline(always)]
pub fn peer(own: u32, peer: u32, is_reply: bool) -> Option<Slot> {
    let peer = slot(secondary::peer_index(own, peer))?;
    // SAFETY: `flow` points into FLOWS.
    let points_back = secondary::peer_index(peer.index, unsafe { (*peer.flow).peer }) == own;
    (points_back && read_mark(peer.flow).is_reply() != is_reply).then_some(peer)
}

/// Tears down the rest of the connection whose flow left a slot in `state`: its other direction, and its part of the
/// backend's load.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn teardown_peer(index: u32, state: u32) -> u32 {
    let Some(own) = secondary::flow(index) else {
        return opaque(0);
    };
    // SAFETY: `own` points into FLOWS; its fields are still those of the flow that left.
    let (counter, peer_index) =
        unsafe { (Counter { backend: (*own).backend(), generation: (*own).generation }, (*own).peer) };
    let is_reply = read_mark(own).is_reply();
    let mut first_left = if is_reply { None } else { Some(State::from_byte(state as u8)) };
    if let Some(peer) = peer(index, peer_index, is_reply)
        && peer.mark.state() as u8 > State::Busy as u8
        && let Some(left) = peer.move_to(State::Empty)
        && is_reply
    {
        first_left = Some(left);
    }
    load::account(counter, first_left, State::Empty);
    opaque(0)
}

/// Removes a connection: both directions.
///
/// The slot is claimed before it is emptied: otherwise another CPU could write a new flow to it while `teardown_peer` still
/// reads the old one. Three functions in sequence, because nested ones would need a deeper stack.
#[inline(always)]
pub fn remove(slot: &Slot) {
    let held = claim_for_removal(slot.index, slot.mark.0);
    if held != 0 {
        end_evicted(slot.index, Word(held).state() as u32);
        opaque(release(slot.index, held));
    }
}

/// Claims the slot of the flow that has this mark. Returns the word before; 0 if the flow has left the slot.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim_for_removal(index: u32, mark: u32) -> u64 {
    let Some(word) = word(index) else {
        return 0;
    };
    let mut tries = 0;
    // As in `move_to`.
    while tries < 2 {
        // SAFETY: aligned word of FLOW_BUCKETS.
        let held = Word(unsafe { ptr::read_volatile(word) });
        if held.version() != Mark(mark).version() || held.state() as u8 <= State::Busy as u8 {
            break;
        }
        if take(index, word, held).is_some() {
            return held.0;
        }
        tries += 1;
    }
    0
}

/// Empties a slot that was claimed for removal when its word was `held`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn release(index: u32, held: u64) -> u32 {
    let held = Word(held);
    if let Some(slot) = claimed((held.claimed().version() as u64) << 32 | index as u64) {
        publish(&slot, State::Empty, held.tag(), held.seen(), 0);
    }
    opaque(0)
}
