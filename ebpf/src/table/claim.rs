//! Claims slots: selects one for a new flow, and publishes what is written to it.

use core::ptr;

use vipgate_abi::flow::{self, CANDIDATES, Candidate, Mark, State, Survey, WAYS, Word};

use super::{
    idle::idle,
    remove::{remove, teardown_peer},
    slot::{Slot, read_mark, slot, word, words, write_mark},
};
use crate::{
    atomic,
    maps::FLOW_BUCKETS,
    secondary,
    verifier::{counted, opaque},
};

/// The slot that a claim names.
#[inline(always)]
pub(super) fn claimed(claim: u64) -> Option<Slot> {
    let slot = slot(claim as u32)?;
    Some(Slot { mark: Mark::new(State::Busy, (claim >> 32) as u8, 0, 0), ..slot })
}

/// Claims a slot for a new flow (rule 1): an empty one, or the one that eviction prefers, whose connection then ends. If
/// there is none, a connection that has been idle for too long is ended. Returns the slot's index, with its version above
/// 32 bits; `None` if every candidate slot holds an established flow, or other CPUs won each race.
#[inline(always)]
pub(super) fn claim(hash: u64, mask: u32, now: u32) -> Option<u64> {
    let mut claim = claim_slot(hash, mask, now);
    if claim == NOTHING {
        remove(&idle(hash, mask, now)?);
        claim = claim_slot(hash, mask, now);
        if claim == NOTHING {
            return None;
        }
    }
    end_evicted(claim as u32, (claim >> EVICTED) as u32);
    Some(claim)
}

/// No slot.
const NOTHING: u64 = u64::MAX;
/// In what [`claim_slot`] returns: from this bit on, above the version's 8 bits, the state of the flow that was evicted.
const EVICTED: u32 = 40;

/// [`claim`] without the teardown of the evicted flow, whose state it returns: a function that does both would need too
/// deep a stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim_slot(hash: u64, mask: u32, now: u32) -> u64 {
    let preferred = flow::preferred(hash, mask);
    let Some(word) = word(preferred) else {
        return NOTHING;
    };
    // SAFETY: aligned word of FLOW_BUCKETS.
    let held = Word(unsafe { ptr::read_volatile(word) });
    if held.state() as u8 == State::Empty as u8
        && let Some(claimed) = take(preferred, word, held)
    {
        return answer(preferred, held, claimed);
    }
    let mut tries = 0;
    while tries < 2 {
        tries += 1;
        let mut best = Survey::default();
        let (mut number, mut passed) = (0, 0);
        let mut at = Candidate::home(hash, mask);
        let mut depth = 0;
        while depth < CANDIDATES {
            let seen = Survey(survey(at.bucket, now));
            if !seen.is_crowded() || seen.is_better(best) {
                (best, number, passed) = (seen, at.bucket, depth);
            }
            if !seen.is_crowded() {
                break;
            }
            at = at.next(mask);
            depth += 1;
        }
        if !flow::is_evictable(best.rank()) {
            return NOTHING;
        }
        if passed > 0 && mark_passed(hash, mask, passed) == 0 {
            continue;
        }
        let index = number * WAYS as u32 + best.way() as u32;
        let Some(word) = self::word(index) else {
            return NOTHING;
        };
        // SAFETY: aligned word of FLOW_BUCKETS.
        let held = Word(unsafe { ptr::read_volatile(word) });
        // Another CPU has it by now: its new flow must not be evicted before flows that are worth less.
        if held.eviction_rank(now) < best.rank() {
            continue;
        }
        if let Some(claimed) = take(index, word, held) {
            return answer(index, held, claimed);
        }
    }
    NOTHING
}

/// What [`claim_slot`] returns for a slot whose word was `held` before.
#[inline(always)]
fn answer(index: u32, held: Word, claimed: Word) -> u64 {
    (held.state() as u64) << EVICTED | (claimed.version() as u64) << 32 | index as u64
}

/// A bucket's [`Survey`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn survey(number: u32, now: u32) -> u64 {
    let mut survey = Survey::default();
    if let Some(bucket) = FLOW_BUCKETS.get_ptr_mut(number) {
        let bucket = words(bucket);
        let mut way = counted(0);
        while way < WAYS {
            // SAFETY: way < WAYS; aligned word of FLOW_BUCKETS.
            survey = survey.with(way, Word(unsafe { ptr::read_volatile(bucket.add(way)) }), now);
            way += 1;
        }
    }
    survey.0
}

/// Marks the first `buckets` candidates of a hash as overflowed (rule 10). 0 if one of them could not be marked.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mark_passed(hash: u64, mask: u32, buckets: u32) -> u32 {
    let mut at = Candidate::home(hash, mask);
    let mut depth = 0;
    while depth < CANDIDATES && depth < buckets {
        if !mark_overflowed(at.bucket) {
            return opaque(0);
        }
        at = at.next(mask);
        depth += 1;
    }
    opaque(1)
}

/// False if other CPUs are changing the bucket's words right now.
#[inline(always)]
fn mark_overflowed(number: u32) -> bool {
    let Some(bucket) = FLOW_BUCKETS.get_ptr_mut(number) else {
        return false;
    };
    let bucket = words(bucket);
    let mut way = counted(0);
    while way < WAYS {
        // SAFETY: way < WAYS; aligned word of FLOW_BUCKETS.
        let word = unsafe { bucket.add(way) };
        // SAFETY: as above.
        let held = Word(unsafe { ptr::read_volatile(word) });
        if held.has_overflowed() {
            return true;
        }
        // SAFETY: as above.
        let mark = || unsafe { atomic::compare_and_swap(word, held.0, held.overflowed().0) };
        if held.state() as u8 != State::Busy as u8 && mark() {
            return true;
        }
        way += 1;
    }
    false
}

/// Claims the slot whose word was read as `held` (rule 1); [`end_evicted`] does the rest. `None` if another CPU was first.
#[inline(always)]
pub(super) fn take(index: u32, word: *mut u64, held: Word) -> Option<Word> {
    let claimed = held.claimed();
    // SAFETY: aligned word of FLOW_BUCKETS.
    if !unsafe { atomic::compare_and_swap(word, held.0, claimed.0) } {
        return None;
    }
    if let Some(flow) = secondary::flow(index) {
        // Rule 2. The flags stay: `teardown_peer` reads them.
        write_mark(flow, Mark::new(State::Busy, claimed.version(), 0, read_mark(flow).flags()));
    }
    Some(claimed)
}

/// Tears down the connection of the flow that was in a claimed slot in this state.
#[inline(always)]
pub(super) fn end_evicted(index: u32, state: u32) {
    if state != State::Empty as u32 {
        opaque(teardown_peer(index, state));
    }
}

/// Publishes a claimed slot. The flow must have been written before; mark and word are stored after it.
#[inline(always)]
pub(super) fn publish(slot: &Slot, state: State, tag: u16, now: u32, flags: u8) {
    publish_as(slot, state, state, tag, now, flags);
}

/// The same with another state in the mark. With a dead mark no lookup finds the flow until the mark is
/// [synchronised](super::slot::sync_mark).
#[inline(always)]
pub(super) fn publish_as(slot: &Slot, state: State, marked: State, tag: u16, now: u32, flags: u8) {
    let new = Word::new(state, slot.mark.version(), tag, now);
    write_mark(slot.flow, Mark::of(new.with_state(marked), flags));
    if let Some(word) = word(slot.index) {
        // SAFETY: aligned word of FLOW_BUCKETS that this CPU claimed; rule 10.
        unsafe { ptr::write_volatile(word, new.after(Word(ptr::read_volatile(word))).0) };
    }
}

/// Empties a slot that was claimed, and in which nothing was published.
#[inline(always)]
pub(super) fn release_claim(claim: u64, now: u32) {
    if let Some(slot) = claimed(claim) {
        publish(&slot, State::Empty, 0, now, 0);
    }
}
