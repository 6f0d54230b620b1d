//! Connections that have been idle for longer than their service's timeout. The controller's sweeper ends them. So does the
//! packet path when it finds no other slot, so that the table does not fill up while no controller runs.

use core::ptr;

use vipgate_abi::{
    config::Config,
    flow::{CANDIDATES, Candidate, State, WAYS, Word},
};

use super::slot::{Slot, found, slot, word};
use crate::{
    maps::{BACKENDS, CONFIG},
    secondary,
    verifier::counted,
};

/// A candidate slot of this hash whose connection has been idle for too long.
#[inline(always)]
pub(super) fn idle(hash: u64, mask: u32, now: u32) -> Option<Slot> {
    found(idle_slot(hash, mask, now))
}

const NOTHING: u64 = u64::MAX;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn idle_slot(hash: u64, mask: u32, now: u32) -> u64 {
    let mut at = Candidate::home(hash, mask);
    let mut depth = 0;
    while depth < CANDIDATES {
        let found = idle_in(at.bucket, now);
        if found != NOTHING {
            return found;
        }
        at = at.next(mask);
        depth += 1;
    }
    NOTHING
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn idle_in(bucket: u32, now: u32) -> u64 {
    let mut way = counted(0);
    while way < WAYS {
        let found = idle_at(bucket * WAYS as u32 + way as u32, now);
        if found != NOTHING {
            return found;
        }
        way += 1;
    }
    NOTHING
}

/// The slot, if both directions of its connection have been idle for longer than its backend's timeout. Only for
/// connections that cannot be evicted otherwise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn idle_at(index: u32, now: u32) -> u64 {
    let (Some(word), Some(flow), Some(config)) = (word(index), secondary::flow(index), CONFIG.get(0)) else {
        return NOTHING;
    };
    // SAFETY: aligned word of FLOW_BUCKETS.
    let held = Word(unsafe { ptr::read_volatile(word) });
    // For most flows of a busy table, the word that was just read is enough.
    if (held.state() as u8) < State::Closing as u8 || !Word::has_passed(held.age(now), 0, 0) {
        return NOTHING;
    }
    // SAFETY: `flow` points into FLOWS; if another CPU claims the slot right now, its version changes.
    let (backend, protocol, peer) = unsafe { ((*flow).backend(), (*flow).key.protocol, (*flow).peer) };
    let Some(timeout) = BACKENDS.get(backend).map(|backend| backend.idle_timeout_of(protocol)) else {
        return NOTHING;
    };
    let peer_age = slot(secondary::peer_index(index, peer)).map_or(u32::MAX, |peer| peer.age(now));
    let age = if peer_age < held.age(now) { peer_age } else { held.age(now) };
    if Word::has_passed(age, timeout, Config::second(config)) { held.found_at(index) } else { NOTHING }
}
