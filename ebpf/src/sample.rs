//! Evicts a connection if a service is full of connections without a handshake (`vipgate_abi::sample`).

use core::ptr;

use vipgate_abi::{
    flow::{self, Candidate, State, WAYS, Word},
    hash,
    sample::{self, GROUP, LAST_CLASS},
};

use crate::{
    clock::nanoseconds,
    maps::{BACKENDS, CONFIG, FLOW_BUCKETS, FLOWS, SAMPLE},
    secondary,
    service::{self, Limit},
    table::{self, Slot},
    verifier::{counted, opaque},
};

/// No place: nothing was evicted.
pub const NOWHERE: u32 = u32::MAX;

/// Ends the connection that has been idle for longest in a sample of a full service's connections. `answers` is the slot of
/// the flow of answers that needs its place. Returns the place, for [`record`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn evict_idlest(answers: u32, now: u32) -> u32 {
    let found = longest_idle(answers, now);
    if found == NONE_FOUND {
        return NOWHERE;
    }
    if let Some(slot) = table::found(found) {
        table::remove(&slot);
    }
    (found >> PLACE) as u32
}

const NONE_FOUND: u64 = u64::MAX;
/// In what [`longest_idle`] returns: from this bit on the place, below it the slot as [`Word::found_at`] names it.
const PLACE: u32 = 40;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn longest_idle(answers: u32, now: u32) -> u64 {
    let hash = hash_of(answers);
    let limit = limit_of(answers);
    let (service, most) = ((limit >> 32) as u32, limit as u32);
    if most == 0 {
        return NONE_FOUND;
    }
    let mut seen = Seen { longest_idle: 0, place: 0, count: 0 };
    // Other places than at the last attempt.
    let mut chance = hash ^ nanoseconds();
    let own = sample::class(most);
    let mut tries = counted(0);
    while tries < TRIES && seen.count < GROUP {
        chance = hash::words([chance, tries as u64], hash);
        let higher = (tries as u32).saturating_sub(TRIES_OF_OWN);
        let class = if own + higher < LAST_CLASS { own + higher } else { LAST_CLASS };
        opaque(inspect_group(sample::group(service, class, chance), service, now, &mut seen));
        tries += 1;
    }
    if seen.count == 0 {
        return NONE_FOUND;
    }
    (seen.place as u64) << PLACE | seen.longest_idle & ((1 << AGE) - 1)
}

/// Groups that are looked at until as many connections have been seen as one has places, so that who talks on is not alone:
/// of the service's class at most so many, and one of each higher class, where its connections are if its limit was higher.
const TRIES_OF_OWN: u32 = 6;
const TRIES: usize = (TRIES_OF_OWN + 1 + LAST_CLASS) as usize;

/// What the sample has shown so far.
#[repr(C)]
struct Seen {
    /// As [`sampled`] returns it.
    longest_idle: u64,
    place: u32,
    count: u32,
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn inspect_group(first: u32, service: u32, now: u32, seen: *mut Seen) -> u32 {
    // SAFETY: the caller's pointer is to its own value, but the verifier looks at this function alone.
    let Some(seen) = (unsafe { seen.as_mut() }) else {
        return opaque(0);
    };
    let mut number = counted(0);
    while number < GROUP as usize {
        let place = first + number as u32;
        let found = sampled(place, service, now);
        if found != 0 {
            seen.count += 1;
            if found >> AGE > seen.longest_idle >> AGE {
                (seen.longest_idle, seen.place) = (found, place);
            }
        }
        number += 1;
    }
    opaque(1)
}

/// In what [`sampled`] returns: from this bit on the age, between 1 and [`OLDEST`], below it the slot's name.
const AGE: u32 = 40;
const OLDEST: u32 = (1 << (u64::BITS - AGE)) - 1;

/// The connection at a place, if it belongs to the service and is still in its home bucket (other buckets are not
/// searched); else 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sampled(place: u32, service: u32, now: u32) -> u64 {
    let (Some(config), Some(&hash)) = (CONFIG.get(0), SAMPLE.get(place)) else {
        return 0;
    };
    let home = Candidate::home(hash, config.bucket_mask).bucket;
    let Some(bucket) = FLOW_BUCKETS.get_ptr_mut(home) else {
        return 0;
    };
    let mut way = counted(0);
    while way < WAYS {
        // SAFETY: way < WAYS; aligned word of FLOW_BUCKETS.
        let word = Word(unsafe { ptr::read_volatile(ptr::addr_of!((*bucket).words).cast::<u64>().add(way)) });
        let index = home * WAYS as u32 + way as u32;
        if word.tag() == flow::tag(hash) && word.state() as u8 == State::Datagrams as u8 && is_of(index, service) {
            let age = word.age(now).clamp(1, OLDEST);
            return (age as u64) << AGE | word.found_at(index);
        }
        way += 1;
    }
    0
}

#[inline(always)]
fn is_of(index: u32, service: u32) -> bool {
    let Some(flow) = FLOWS.get_ptr_mut(index) else {
        return false;
    };
    // SAFETY: `flow` points into FLOWS. `remove` finds out whether the connection is still there.
    let backend = unsafe { (*flow).backend() };
    BACKENDS.get(backend).is_some_and(|backend| backend.service == service)
}

/// Records a connection that a service with a limit admitted, by its flow of answers: at the place that was freed, or at
/// one of its group whose connection is gone, or else over another connection.
#[inline(always)]
pub fn record(answers: &Slot, limit: Limit, freed: Option<u32>) {
    let freed = freed.map_or(0, |place| 1 << 32 | place as u64);
    opaque(record_at(answers.index, limit.service, limit.most, freed));
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record_at(answers: u32, service: u32, most: u32, freed: u64) -> u32 {
    let hash = hash_of(answers);
    let place = if freed == 0 {
        free_place(sample::group(service, sample::class(most), hash), service, hash as u32 % GROUP)
    } else {
        freed as u32
    };
    if let Some(element) = SAMPLE.get_ptr_mut(place) {
        // SAFETY: aligned element of SAMPLE.
        unsafe { ptr::write_volatile(element, hash) };
    }
    opaque(0)
}

/// A place without a connection of the service, in the group that begins at `first`; the search begins at `own`, which is
/// returned if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn free_place(first: u32, service: u32, own: u32) -> u32 {
    let mut number = counted(0);
    while number < GROUP as usize {
        let place = first + (own + number as u32) % GROUP;
        if sampled(place, service, 0) == 0 {
            return place;
        }
        number += 1;
    }
    first + own % GROUP
}

/// The hash by which a flow is found.
#[inline(always)]
fn hash_of(index: u32) -> u64 {
    let (Some(flow), Some(config)) = (secondary::flow(index), CONFIG.get(0)) else {
        return 0;
    };
    // SAFETY: `flow` points into FLOWS.
    hash::flow(unsafe { &(*flow).key }, config.flow_seed)
}

/// The service of a flow of answers, in the upper 32 bits, and its limit.
#[inline(always)]
fn limit_of(answers: u32) -> u64 {
    let Some(flow) = secondary::flow(answers) else {
        return 0;
    };
    // SAFETY: `flow` points into FLOWS.
    let (vip, port, protocol, backend) =
        unsafe { ((*flow).new_src, (*flow).new_sport, (*flow).key.protocol, (*flow).backend()) };
    service::limit(vip, protocol, port, backend).map_or(0, |limit| (limit.service as u64) << 32 | limit.most as u64)
}
