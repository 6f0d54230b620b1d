//! Finds flows.

use core::ptr;

use vipgate_abi::flow::{self, CANDIDATES, Candidate, Flow, State, WAYS, Ways, Word};

use super::slot::{NOWHERE, Slot, read_mark, word, words};
use crate::{
    atomic,
    maps::FLOWS,
    secondary::{self, SECONDARY},
    verifier::{counted, opaque, whole},
};

/// Finds the flow whose key has these words.
#[inline(always)]
pub fn lookup(wanted: [u64; 2], hash: u64, mask: u32) -> Option<Slot> {
    if let Some(slot) = find(flow::preferred(hash, mask), wanted) {
        return Some(slot);
    }
    searched(wanted, hash, mask)
}

/// The flow by a search of its buckets, without a look at its preferred slot.
#[inline(always)]
pub(super) fn searched(wanted: [u64; 2], hash: u64, mask: u32) -> Option<Slot> {
    let index = index_of(wanted, hash, mask);
    same(secondary::flow(index)?, index, wanted)
}

/// The flow in this slot of our own table, if its key has these words.
#[inline(always)]
fn find(index: u32, wanted: [u64; 2]) -> Option<Slot> {
    same(FLOWS.get_ptr_mut(index)?, index, wanted)
}

/// The slot of a flow, if its key has these words.
#[inline(always)]
fn same(flow: *mut Flow, index: u32, wanted: [u64; 2]) -> Option<Slot> {
    let mark = read_mark(flow);
    if !has_key(flow, wanted) || !mark.is_live() {
        return None;
    }
    Some(Slot { index, flow, mark })
}

#[inline(always)]
fn has_key(flow: *mut Flow, wanted: [u64; 2]) -> bool {
    // SAFETY: the key is the flow's first 16 bytes, aligned to 64.
    let stored = unsafe { [ptr::read_volatile(flow.cast::<u64>()), ptr::read_volatile(flow.cast::<u64>().add(1))] };
    (stored[0] ^ wanted[0]) | (stored[1] ^ wanted[1]) == 0
}

/// What [`search`] returns if the flow is not in its home bucket, but may be in another one: [`search_elsewhere`] finds it.
pub const ELSEWHERE: u32 = u32::MAX - 1;

/// The slot of the flow whose key has these words, or none.
#[inline(always)]
pub(super) fn index_of(wanted: [u64; 2], hash: u64, mask: u32) -> u32 {
    // Two calls in sequence instead of nested ones: the stack is less deep.
    match search(wanted[0], wanted[1], hash, mask) {
        ELSEWHERE => search_on(wanted[0], wanted[1], hash, mask),
        found => found,
    }
}

/// The slot of the flow whose key has these words, if it is in its home bucket; else [`NOWHERE`] or [`ELSEWHERE`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn search(addresses: u64, rest: u64, hash: u64, mask: u32) -> u32 {
    match search_bucket(Candidate::home(hash, mask).bucket, NOWHERE, [addresses, rest], hash) {
        NOWHERE if secondary::mask().is_some() => ELSEWHERE,
        found => found,
    }
}

/// The same outside the home bucket: in the buckets after it, if it has overflowed, and then in the secondary table.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search_on(addresses: u64, rest: u64, hash: u64, mask: u32) -> u32 {
    search_elsewhere([addresses, rest], hash, mask)
}

/// [`search_on`], to be inlined in another global function.
#[inline(always)]
pub fn search_elsewhere(wanted: [u64; 2], hash: u64, mask: u32) -> u32 {
    let found = search_from(Candidate::home(hash, mask).next(mask), 1, 0, NOWHERE, wanted, (hash, mask));
    match secondary::mask() {
        Some(mask) if found == NOWHERE => {
            search_from(Candidate::home(hash, mask), 0, SECONDARY, NOWHERE, wanted, (hash, mask))
        }
        _ => found,
    }
}

/// The slot of a flow in its candidate bucket `at`, number `depth`, or in those after it as long as each has overflowed.
#[inline(always)]
fn search_from(at: Candidate, depth: u32, table: u32, own: u32, wanted: [u64; 2], (hash, mask): (u64, u32)) -> u32 {
    let (mut at, mut depth) = (at, depth);
    while depth < CANDIDATES {
        let found = search_at(wanted[0], wanted[1], hash, (own as u64) << 32 | (at.bucket | table) as u64);
        if found != ELSEWHERE {
            return found;
        }
        at = at.next(mask);
        depth += 1;
    }
    NOWHERE
}

/// [`search_bucket`] for calls in a loop. `place` is the bucket's number, and above 32 bits `own`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search_at(addresses: u64, rest: u64, hash: u64, place: u64) -> u32 {
    search_bucket(place as u32, (place >> 32) as u32, [addresses, rest], hash)
}

/// The slot of the flow whose key has these words in a bucket. If there is an `own` slot, it is skipped, and others are
/// matched by their words instead of their marks: a flow that lookups do not find yet has a dead mark.
#[inline(always)]
fn search_bucket(number: u32, own: u32, wanted: [u64; 2], hash: u64) -> u32 {
    let Some(bucket) = secondary::bucket(number) else {
        return NOWHERE;
    };
    let bucket = words(bucket);
    let tag = flow::tag(hash);
    let mut candidates = Ways::default();
    let mut way = counted(0);
    while way < WAYS {
        // SAFETY: way < WAYS; aligned word of FLOW_BUCKETS.
        candidates = candidates.with_match(way, Word(unsafe { ptr::read_volatile(bucket.add(way)) }), tag);
        way += 1;
    }
    let first = whole(((number & !SECONDARY) * WAYS as u32) | (number & SECONDARY));
    let mut tried = 0;
    while tried < WAYS && !candidates.is_empty() {
        let (way, others) = candidates.pop();
        let index = whole(first | way as u32);
        let is_it = |flow| match own {
            NOWHERE => same(flow, index, wanted).is_some(),
            own => {
                // SAFETY: way < WAYS; aligned word of FLOW_BUCKETS.
                let word = Word(unsafe { ptr::read_volatile(bucket.add(way)) });
                index != own && is_taken(word) && has_key(flow, wanted)
            }
        };
        if secondary::flow(index).is_some_and(is_it) {
            return index;
        }
        candidates = others;
        tried += 1;
    }
    if candidates.has_overflowed() { ELSEWHERE } else { NOWHERE }
}

#[inline(always)]
fn is_taken(word: Word) -> bool {
    word.state() as u8 > State::Busy as u8
}

/// 1 if another flow has the same key words as the one that was just published in the slot `own` (rule 9).
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn has_duplicate(addresses: u64, rest: u64, hash: u64, mask: u32, own: u32) -> u32 {
    let Some(word) = word(own) else {
        return 1;
    };
    // This atomic operation only serves as a full barrier: the flow is visible to other CPUs before this one searches for
    // theirs.
    // SAFETY: aligned word of FLOW_BUCKETS.
    unsafe {
        let held = ptr::read_volatile(word);
        atomic::compare_and_swap(word, held, held);
    }
    let wanted = [addresses, rest];
    let mut found = search_from(Candidate::home(hash, mask), 0, 0, own, wanted, (hash, mask));
    if found == NOWHERE
        && let Some(mask) = secondary::mask()
    {
        found = search_from(Candidate::home(hash, mask), 0, SECONDARY, own, wanted, (hash, mask));
    }
    opaque((found != NOWHERE) as u32)
}
