//! Inserting a connection: both its directions, or none.

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

/// Inserts both directions of a new connection, and counts it: what [`opened`] takes.
#[inline(always)]
pub fn insert(arrival: &Arrival, config: &Config, new: &Connection) -> Result<u64, Reason> {
    let mask = config.bucket_mask;
    let reply_words = new.rewritten.reply_key(&arrival.key).words();
    let reply_hash = hash::words(reply_words, config.flow_seed);
    if let Some(held) = searched(reply_words, reply_hash, mask) {
        // An embryo, or a closed one, gives way if it may.
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
        // Before it can be taken off again.
        load::add(
            Counter { backend: new.backend, generation: new.generation },
            Load::change(State::Empty, State::Opening),
        );
        opaque(write_first(arrival, new, first, reply as u32));
        let [addresses, rest] = arrival.key.words();
        is_lost = new.is_exclusive && has_duplicate(addresses, rest, arrival.hash, mask, first as u32) != 0;
    }
    if is_lost {
        // What has been published another connection may have got; the first flow goes with its answers.
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

/// How often who could not insert a connection looks for its flow, which another CPU that does it publishes last: a number
/// between these, so that two who have given it up do not begin it anew at the same moment.
const LEAST_LOOKS: u32 = 16;
const MOST_LOOKS: u32 = 128;

/// The first flow of a connection that could not be inserted, where another CPU has just met a packet of it, too: a number as
/// [`opened`] takes; 0: there is none.
#[inline(always)]
pub fn inserted_by_other_cpu(arrival: &Arrival) -> u64 {
    let found = await_insert(arrival);
    let Some(slot) = opened(found).filter(|slot| slot.mark.state().is_over()) else {
        return found;
    };
    // What is over nobody has just inserted: the controller, which moves it, has it in the other table still (rule 8). There it
    // must not keep the new one from being inserted.
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

/// Marks an inserted connection's first slot among numbers of reasons, which are below it.
const OPENED: u64 = 1 << 63;
/// Beside it: the next hop is due to be confirmed.
pub const IS_DUE: u64 = 1 << 61;

/// The slot that a connection was just inserted in; None: the number is a reason's.
#[inline(always)]
pub fn opened(number: u64) -> Option<Slot> {
    if number & OPENED == 0 { None } else { slot(number as u32) }
}

/// Writes and publishes the flow of a new connection's answers in a claimed slot; `peer` is where its first flow goes.
#[inline(never)]
fn write_reply(arrival: &Arrival, new: &Connection, claim: u64, peer: u32, tag: u16) -> u32 {
    if let Some(slot) = claimed(claim) {
        let key = &arrival.key;
        let flow = slot.flow;
        // SAFETY: this CPU claimed the slot; what may be stale is the other connection's that was there before.
        unsafe {
            (*flow).key = new.rewritten.reply_key(key);
            (*flow).new_src = key.dst;
            (*flow).new_dst = key.src;
            (*flow).new_sport = key.dport;
            (*flow).new_dport = key.sport;
            // The way back is found when the first answer comes.
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

/// The same of its first packet's direction. One that may have to go again is not seen yet.
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

/// Writes what both directions of a new connection have alike.
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
