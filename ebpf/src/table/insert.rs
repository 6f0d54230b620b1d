//! Inserts connections: both directions, or none.

use vipgate_abi::{
    config::Config,
    counters::Reason,
    flow::{self, FLAG_OUTWARD, FLAG_REPLY, Flow, Hop, State, Target, Volume},
    hash,
    load::Load,
};

use super::{
    claim::{claim, claimed, publish, publish_as, release_claim},
    lookup::{has_duplicate, index_of, searched},
    remove::remove,
    slot::{NOWHERE, Slot, slot, sync_mark},
};
use crate::{
    clock::nanoseconds,
    count,
    load::{self, Counter},
    maps::CONFIG,
    secondary::is_secondary,
    types::{Arrival, Connection},
    verifier::opaque,
};

/// Inserts both directions of a new connection, and counts it. Returns what [`opened`] takes.
#[inline(always)]
pub fn insert(arrival: &Arrival, config: &Config, new: &Connection) -> Result<u64, Reason> {
    let mask = config.bucket_mask;
    let reply_words = new.rewritten.reply_key(&arrival.key).words();
    let reply_hash = hash::words(reply_words, config.flow_seed);
    if let Some(held) = searched(reply_words, reply_hash, mask) {
        // A half-open or closed connection is replaced if `new` allows it.
        if !new.may_replace || held.mark.state() as u8 > State::Answered as u8 {
            return Err(Reason::ReplyInUse);
        }
        remove(&held);
    }
    let Some(first) = claim(arrival.hash, mask, arrival.now) else {
        return Err(Reason::TableFull);
    };
    let Some(reply) = claim(reply_hash, mask, arrival.now) else {
        release_claim(first, arrival.now);
        return Err(Reason::TableFull);
    };
    opaque(write_reply(arrival, new, reply, first as u32, flow::tag(reply_hash)));
    let mut is_lost =
        new.is_exclusive && has_duplicate(reply_words[0], reply_words[1], reply_hash, mask, reply as u32) != 0;
    let is_begun = !is_lost;
    if is_begun {
        // Counted before another CPU can remove it.
        load::add(
            Counter { backend: new.backend, generation: new.generation },
            Load::change(State::Empty, State::Opening),
        );
        opaque(write_first(arrival, new, first, reply as u32));
        let [addresses, rest] = arrival.key.words();
        is_lost = new.is_exclusive && has_duplicate(addresses, rest, arrival.hash, mask, first as u32) != 0;
    }
    if is_lost {
        // Another connection may have taken the published slot. `remove` also removes the first flow.
        if let Some(reply) = claimed(reply) {
            remove(&reply);
        }
        if !is_begun {
            release_claim(first, arrival.now);
        }
        return Err(Reason::ReplyInUse);
    }
    if new.is_exclusive {
        opaque(sync_mark(first as u32));
    }
    count::connection(new.backend);
    Ok(first as u32 as u64 | if new.route.is_due() { OPENED | IS_DUE } else { OPENED })
}

/// Bounds of the number of lookups for a connection that another CPU is inserting. The number varies, so that two CPUs that
/// both backed off do not retry at the same moment.
const LEAST_LOOKS: u32 = 16;
const MOST_LOOKS: u32 = 128;

/// Waits for the first flow of a connection that this CPU could not insert, because another CPU is inserting it. Returns
/// what [`opened`] takes; 0 if there is none.
#[inline(always)]
pub fn inserted_by_other_cpu(arrival: &Arrival) -> u64 {
    let found = await_insert(arrival);
    let Some(slot) = opened(found).filter(|slot| slot.mark.state().is_over()) else {
        return found;
    };
    // A flow that is over was not just inserted: the controller is moving it, and it still is in the secondary table (rule
    // 8). There it must not block the new connection.
    if is_secondary(slot.index) {
        remove(&slot);
    }
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn await_insert(arrival: *const Arrival) -> u64 {
    // SAFETY: the caller's pointer is to an arrival of its own, but the verifier looks at this function alone.
    let (Some(arrival), Some(config)) = (unsafe { arrival.as_ref() }, CONFIG.get(0)) else {
        return 0;
    };
    let [addresses, rest] = arrival.key.words();
    let mut looks = nanoseconds() as u32 % (MOST_LOOKS - LEAST_LOOKS);
    while looks < MOST_LOOKS {
        let index = index_of([addresses, rest], arrival.hash, config.bucket_mask);
        if index != NOWHERE {
            return index as u64 | OPENED;
        }
        looks += 1;
    }
    0
}

/// Distinguishes the first slot of an inserted connection from a reason's number.
const OPENED: u64 = 1 << 63;
/// With [`OPENED`]: the next hop is to be confirmed.
pub const IS_DUE: u64 = 1 << 61;

/// The slot of a connection that was just inserted; `None` if the number is a reason's.
#[inline(always)]
pub fn opened(number: u64) -> Option<Slot> {
    if number & OPENED == 0 { None } else { slot(number as u32) }
}

/// Writes and publishes the flow of a new connection's answers in a claimed slot. `peer` is the first flow's slot.
#[inline(never)]
fn write_reply(arrival: &Arrival, new: &Connection, claim: u64, peer: u32, tag: u16) -> u32 {
    if let Some(slot) = claimed(claim) {
        let key = &arrival.key;
        let flow = slot.flow;
        // SAFETY: this CPU claimed the slot, and other CPUs only read it.
        unsafe {
            (*flow).key = new.rewritten.reply_key(key);
            (*flow).new_src = key.dst;
            (*flow).new_dst = key.src;
            (*flow).new_sport = key.dport;
            (*flow).new_dport = key.sport;
            // The route back is looked up when the first answer comes.
            (*flow).target = Target::of(new.backend);
            (*flow).hop = Hop::unknown(slot.mark.version(), arrival.now);
            (*flow).from = new.answers_by;
            init_flow(flow, peer, new);
        }
        let flags = if new.is_outward { FLAG_REPLY } else { FLAG_REPLY | FLAG_OUTWARD };
        publish(&slot, State::Opening, tag, arrival.now, flags);
    }
    opaque(0)
}

/// The same for the first packet's direction. If it may have to be removed again, lookups do not find it yet.
#[inline(never)]
fn write_first(arrival: &Arrival, new: &Connection, claim: u64, peer: u32) -> u32 {
    if let Some(slot) = claimed(claim) {
        let flow = slot.flow;
        // SAFETY: as above.
        unsafe {
            (*flow).key = arrival.key;
            (*flow).new_src = new.rewritten.src;
            (*flow).new_dst = new.rewritten.dst;
            (*flow).new_sport = new.rewritten.sport;
            (*flow).new_dport = new.rewritten.dport;
            (*flow).target = Target::new(new.backend, new.route.number());
            (*flow).hop = Hop::new(new.route.next_hop, new.epoch, new.route.number());
            (*flow).from = new.comes_by;
            init_flow(flow, peer, new);
        }
        let flags = if new.is_outward { FLAG_OUTWARD } else { 0 };
        let marked = if new.is_exclusive { State::Busy } else { State::Opening };
        publish_as(&slot, State::Opening, marked, flow::tag(arrival.hash), arrival.now, flags);
    }
    opaque(0)
}

/// Writes the fields that both directions of a new connection have in common.
///
/// # Safety
/// This CPU claimed the flow's slot.
#[inline(always)]
unsafe fn init_flow(flow: *mut Flow, peer: u32, new: &Connection) {
    // SAFETY: as the caller promises.
    unsafe {
        (*flow).generation = new.generation;
        (*flow).peer = peer;
        (*flow).packets = 0;
        (*flow).volume = Volume::default();
    }
}
