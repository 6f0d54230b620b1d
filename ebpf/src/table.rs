//! Stage 2: the flow table. Its layout and race rules (numbered there) are in `vipgate_abi::flow`.

use core::{
    ptr,
    sync::atomic::{Ordering, compiler_fence},
};

use vipgate_abi::{
    config::Config,
    counters::Reason,
    flow::{self, Bucket, FLAG_OUTWARD, FLAG_REPLY, Flow, Hop, Mark, State, Target, Volume, WAYS, Ways, Word},
    hash,
    load::Load,
};

use crate::{
    atomic,
    clock::nanoseconds,
    count,
    load::{self, Counter},
    maps::{CONFIG, FLOW_BUCKETS, FLOWS},
    other::{self, OTHER},
    pipeline::Arrival,
    route::{Rewritten, Route},
    verifier::opaque,
};

/// A flow in its slot.
#[derive(Clone, Copy)]
pub struct Slot {
    /// Index in FLOWS, or in OTHER_FLOWS (see `other`).
    pub index: u32,
    pub flow: *mut Flow,
    /// The flow's mark as it was when the slot was found: who the slot is meant to hold.
    pub mark: Mark,
}

impl Slot {
    /// No slot: nothing changes it.
    pub const NOWHERE: Self = Self { index: NOWHERE, flow: ptr::null_mut(), mark: Mark(0) };

    /// True while the slot holds the flow that was found (rule 2).
    #[inline(always)]
    pub fn holds(&self) -> bool {
        read_mark(self.flow).still(self.mark)
    }

    /// Moves the slot to a state (rule 4), unless it is in it, is over, holds another flow, or loses the race: tells
    /// whether it moved it, and from where.
    #[inline(always)]
    pub fn move_to(&self, state: State) -> Option<State> {
        let kept = if state as u8 <= State::Closed as u8 { State::Busy } else { State::Resumed };
        self.change(kept as u32 + 1, u8::MAX as u32, state)
    }

    /// Moves a slot that is [over](State::is_over), at least as far as `from`, to a state; as [`Slot::move_to`].
    #[inline(always)]
    pub fn revive(&self, from: State, state: State) -> Option<State> {
        self.change(from as u32, State::Resumed as u32, state)
    }

    #[inline(always)]
    fn change(&self, least: u32, most: u32, state: State) -> Option<State> {
        let left = State::from_byte(change_at(self.index, self.mark.0, least | most << 8, state as u32) as u8);
        if left as u8 == State::Empty as u8 {
            return None;
        }
        opaque(mirror(self.index));
        Some(left)
    }

    /// Jiffies since the time that is stored in the slot's word; of none, since ever.
    #[inline(always)]
    pub fn age(&self, now: u32) -> u32 {
        // SAFETY: aligned word of FLOW_BUCKETS.
        word(self.index).map_or(u32::MAX, |word| Word(unsafe { ptr::read_volatile(word) }).age(now))
    }
}

/// Swaps the state of a slot that holds the flow of this mark, if it is among `from` (the least of them, and above 8 bits the
/// most), for another one; the state before. `Empty`: it was not, or it is that state already.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn change_at(index: u32, mark: u32, from: u32, state: u32) -> u32 {
    let Some(slot_word) = word(index) else {
        return State::Empty as u32;
    };
    let mut tries = 0;
    // A concurrent `touch` makes the swap fail; two tries are enough, the next packet tries again.
    while tries < 2 {
        // SAFETY: aligned word of FLOW_BUCKETS.
        let word = Word(unsafe { ptr::read_volatile(slot_word) });
        let held = word.state() as u32;
        if word.round() != Mark(mark).round() || held == state || held < from & 0xff || held > from >> 8 {
            break;
        }
        // SAFETY: as above.
        if unsafe { atomic::compare_and_swap(slot_word, word.0, word.with_state(State::from_byte(state as u8)).0) } {
            return held;
        }
        tries += 1;
    }
    State::Empty as u32
}

/// The word of a slot.
#[inline(always)]
fn word(index: u32) -> Option<*mut u64> {
    let bucket = other::bucket(((index & !OTHER) / WAYS as u32) | (index & OTHER))?;
    // SAFETY: the way is below WAYS.
    Some(unsafe { words(bucket).add(index as usize % WAYS) })
}

/// The slot with this index.
#[inline(always)]
pub fn slot(index: u32) -> Option<Slot> {
    let flow = other::flow(index)?;
    // SAFETY: aligned word of FLOW_BUCKETS.
    let word = Word(unsafe { ptr::read_volatile(word(index)?) });
    Some(Slot { index, flow, mark: Mark::of(word, read_mark(flow).flags()) })
}

/// The bucket number of a hash.
#[inline(always)]
fn bucket_number(hash: u64, mask: u32) -> u32 {
    hash as u32 & mask
}

#[inline(always)]
fn words(bucket: *mut Bucket) -> *mut u64 {
    // SAFETY: projects within the bucket.
    unsafe { ptr::addr_of_mut!((*bucket).words).cast::<u64>() }
}

#[inline(always)]
fn mark(flow: *mut Flow) -> *mut u32 {
    // SAFETY: projects within the flow.
    unsafe { ptr::addr_of_mut!((*flow).mark).cast::<u32>() }
}

#[inline(always)]
fn read_mark(flow: *mut Flow) -> Mark {
    compiler_fence(Ordering::Acquire);
    // SAFETY: aligned word of FLOWS.
    let mark = Mark(unsafe { ptr::read_volatile(mark(flow)) });
    compiler_fence(Ordering::Acquire);
    mark
}

#[inline(always)]
fn write_mark(flow: *mut Flow, new: Mark) {
    compiler_fence(Ordering::Release);
    // SAFETY: aligned word of FLOWS.
    unsafe { ptr::write_volatile(mark(flow), new.0) };
    compiler_fence(Ordering::Release);
}

/// Stores the time of a hit (rule 3), unless the connection is over.
#[inline(always)]
pub fn touch(index: u32, now: u32) {
    opaque(touch_at(index, now, 0));
}

/// Stores the time of what may tell that a connection lives, though it be over (rule 4).
#[inline(always)]
pub fn note(index: u32, now: u32) {
    opaque(touch_at(index, now, 1));
}

/// Stores the time of a hit of the other direction: this one's way out is asked for again all the same.
#[inline(always)]
pub fn see(index: u32, now: u32) {
    if let Some(word) = word(index) {
        // SAFETY: the upper half of an aligned word of FLOW_BUCKETS (little-endian).
        unsafe { ptr::write_volatile(word.cast::<u32>().add(1), now) };
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn touch_at(index: u32, now: u32, is_over: u32) -> u32 {
    if let (Some(word), Some(flow)) = (word(index), other::flow(index)) {
        // SAFETY: aligned word of FLOW_BUCKETS.
        if is_over == 0 && Word(unsafe { ptr::read_volatile(word) }).state().is_over() {
            return opaque(0);
        }
        // SAFETY: the upper half of an aligned word of FLOW_BUCKETS, the third byte of one of FLOWS (little-endian).
        unsafe {
            ptr::write_volatile(word.cast::<u32>().add(1), now);
            ptr::write_volatile(mark(flow).cast::<u8>().add(2), flow::period(now));
        }
    }
    opaque(0)
}

/// Brings a flow's mark to its slot's word (rule 4).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mirror(index: u32) -> u32 {
    if let (Some(word), Some(flow)) = (word(index), other::flow(index)) {
        let mut tries = 0;
        // Hits and other changes make the swap fail; each of the latter mirrors the word itself.
        while tries < 4 {
            let seen = read_mark(flow);
            // SAFETY: aligned word of FLOW_BUCKETS.
            let Some(new) = seen.following(Word(unsafe { ptr::read_volatile(word) })) else {
                break;
            };
            // SAFETY: aligned word of FLOWS.
            if unsafe { atomic::compare_and_swap32(mark(flow), seen.0, new.0) } {
                break;
            }
            tries += 1;
        }
    }
    opaque(0)
}

/// Finds the flow whose key has these words.
#[inline(always)]
pub fn lookup(wanted: [u64; 2], hash: u64, mask: u32) -> Option<Slot> {
    if let Some(slot) = find(flow::preferred(hash, mask), wanted) {
        return Some(slot);
    }
    searched(wanted, hash, mask)
}

/// The state of the flow whose key has these words, if there is one: [`lookup`] with a smaller stack, where its speed does
/// not matter.
#[inline(always)]
pub fn state_of(wanted: [u64; 2], hash: u64, mask: u32) -> Option<State> {
    slot(search(wanted[0], wanted[1], hash, mask)).map(|slot| slot.mark.state())
}

/// The flow that [`search`] finds; what is not there, as it should be, need not be looked for where it would prefer to be.
#[inline(always)]
fn searched(wanted: [u64; 2], hash: u64, mask: u32) -> Option<Slot> {
    let index = search(wanted[0], wanted[1], hash, mask);
    same(other::flow(index)?, index, wanted)
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

/// No slot.
const NOWHERE: u32 = u32::MAX;

/// The slot of the flow whose key has these words: of our own table one other than the preferred, of the other table any.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search(addresses: u64, rest: u64, hash: u64, mask: u32) -> u32 {
    search_where(
        |index, _| other::flow(index).is_some_and(|flow| same(flow, index, [addresses, rest]).is_some()),
        hash,
        mask,
    )
}

/// The first slot among those whose tag is the hash's that is the one, by its index and its word.
#[inline(always)]
fn search_where(is_it: impl Fn(u32, *mut u64) -> bool, hash: u64, mask: u32) -> u32 {
    let found = search_bucket(bucket_number(hash, mask), &is_it, hash);
    match other::mask() {
        Some(mask) if found == NOWHERE => search_bucket(bucket_number(hash, mask) | OTHER, &is_it, hash),
        _ => found,
    }
}

#[inline(always)]
fn search_bucket(number: u32, is_it: &impl Fn(u32, *mut u64) -> bool, hash: u64) -> u32 {
    let Some(bucket) = other::bucket(number) else {
        return NOWHERE;
    };
    let bucket = words(bucket);
    let tag = flow::tag(hash);
    let mut candidates = Ways::default();
    let mut way = 0;
    while way < WAYS {
        // SAFETY: way < WAYS; aligned word of FLOW_BUCKETS.
        candidates = candidates.with_match(way, Word(unsafe { ptr::read_volatile(bucket.add(way)) }), tag);
        way += 1;
    }
    let mut tried = 0;
    while tried < WAYS && !candidates.is_empty() {
        let (way, others) = candidates.pop();
        let index = ((number & !OTHER) * WAYS as u32 + way as u32) | (number & OTHER);
        // SAFETY: way < WAYS.
        if is_it(index, unsafe { bucket.add(way) }) {
            return index;
        }
        candidates = others;
        tried += 1;
    }
    NOWHERE
}

/// The slot that a claim names.
#[inline(always)]
fn claimed(claim: u64) -> Option<Slot> {
    let slot = slot(claim as u32)?;
    Some(Slot { mark: Mark::new(State::Busy, (claim >> 32) as u8, 0, 0), ..slot })
}

/// Claims a slot for a new flow (rule 1), the one that eviction prefers; the evicted flow's other direction goes with
/// it. Gives the slot's index, with its round above 32 bits; `None`: every slot holds an established flow, or other
/// CPUs won each race.
#[inline(always)]
fn claim(hash: u64, mask: u32, now: u32) -> Option<u64> {
    let claim = claim_in_bucket(hash, mask, now);
    if claim == NOTHING {
        return None;
    }
    end_evicted(claim as u32, (claim >> EVICTED) as u32);
    Some(claim)
}

/// No slot.
const NOTHING: u64 = u64::MAX;
/// In [`claim_in_bucket`]'s answer: from this bit on the state of the flow that was evicted, above the round's 8 bits.
const EVICTED: u32 = 40;

/// [`claim`] but for what the evicted flow meant for others, whose state the answer tells: a function that does that as well
/// would need a stack that is too deep.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim_in_bucket(hash: u64, mask: u32, now: u32) -> u64 {
    let number = bucket_number(hash, mask);
    let Some(bucket) = FLOW_BUCKETS.get_ptr_mut(number) else {
        return NOTHING;
    };
    let bucket = words(bucket);
    let preferred = flow::preferred(hash, mask) as usize % WAYS;
    let mut tries = 0;
    while tries < 2 {
        tries += 1;
        // Rank and way in one number: the verifier has one value to follow through the loop.
        let mut best = 0u64;
        // SAFETY: preferred < WAYS; aligned word of FLOW_BUCKETS.
        let word = Word(unsafe { ptr::read_volatile(bucket.add(preferred)) });
        if word.state() as u8 == State::Empty as u8 {
            best = (word.eviction_rank(now) << 3) | preferred as u64;
        } else {
            let mut way = 0;
            while way < WAYS {
                // SAFETY: way < WAYS; aligned word of FLOW_BUCKETS.
                let word = Word(unsafe { ptr::read_volatile(bucket.add(way)) });
                let candidate = (word.eviction_rank(now) << 3) | way as u64;
                if candidate > best {
                    best = candidate;
                }
                way += 1;
            }
        }
        if !flow::is_evictable(best >> 3) {
            return NOTHING;
        }
        let best_way = best as usize & (WAYS - 1);
        // SAFETY: best_way < WAYS.
        let word = unsafe { bucket.add(best_way) };
        // SAFETY: aligned word of FLOW_BUCKETS.
        let best_word = Word(unsafe { ptr::read_volatile(word) });
        // Another CPU's by now: what it put there would be evicted before others that are worth less.
        if best_word.eviction_rank(now) < best >> 3 {
            continue;
        }
        let index = number * WAYS as u32 + best_way as u32;
        if let Some(claimed) = take(index, word, best_word) {
            return (best_word.state() as u64) << EVICTED | (claimed.round() as u64) << 32 | index as u64;
        }
    }
    NOTHING
}

/// Claims the slot whose word was read as `held` (rule 1); [`end_evicted`] does the rest. `None`: another CPU was first.
#[inline(always)]
fn take(index: u32, word: *mut u64, held: Word) -> Option<Word> {
    let claimed = held.claimed();
    // SAFETY: aligned word of FLOW_BUCKETS.
    if !unsafe { atomic::compare_and_swap(word, held.0, claimed.0) } {
        return None;
    }
    if let Some(flow) = other::flow(index) {
        // Rule 2. The flags stay: `part` reads them.
        write_mark(flow, Mark::new(State::Busy, claimed.round(), 0, read_mark(flow).flags()));
    }
    Some(claimed)
}

/// Ends what the flow that was in a claimed slot in this state meant for others.
#[inline(always)]
fn end_evicted(index: u32, state: u32) {
    if state != State::Empty as u32 {
        opaque(part(index, state));
    }
}

/// The other direction of the flow in a slot, by what that says of it. None: its slot is another connection's, or nobody's;
/// the state of what is found may still be `Busy` or `Empty`. It is read before it is asked to whom it belongs: should it
/// become another's just now, it cannot be moved any more (rule 1).
#[inline(always)]
pub fn peer(own: u32, peer: u32, is_reply: bool) -> Option<Slot> {
    let peer = slot(other::beside(own, peer))?;
    // SAFETY: `flow` points into FLOWS.
    let points_back = other::beside(peer.index, unsafe { (*peer.flow).peer }) == own;
    (points_back && read_mark(peer.flow).is_reply() != is_reply).then_some(peer)
}

/// Ends what the slot that left `state` meant for others: its connection's other direction, and the backend's load.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn part(index: u32, state: u32) -> u32 {
    let Some(own) = other::flow(index) else {
        return opaque(0);
    };
    // SAFETY: `own` points into FLOWS; its fields still are those of the flow that left.
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
/// Claims the slot before it empties it: were it free at once, another CPU could write a new flow to it while `part`
/// still reads the one that left. Three functions, of which none calls the next: a stack less deep.
#[inline(always)]
pub fn remove(slot: &Slot) {
    let held = seize(slot.index, slot.mark.0);
    if held != 0 {
        end_evicted(slot.index, Word(held).state() as u32);
        opaque(vacate(slot.index, held));
    }
}

/// Claims the slot of the flow that has this mark: its word as it was before; 0: the flow has left it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn seize(index: u32, mark: u32) -> u64 {
    let Some(word) = word(index) else {
        return 0;
    };
    let mut tries = 0;
    // As in `move_to`.
    while tries < 2 {
        // SAFETY: aligned word of FLOW_BUCKETS.
        let held = Word(unsafe { ptr::read_volatile(word) });
        if held.round() != Mark(mark).round() || held.state() as u8 <= State::Busy as u8 {
            break;
        }
        if take(index, word, held).is_some() {
            return held.0;
        }
        tries += 1;
    }
    0
}

/// Empties a slot that was seized when its word was `held`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn vacate(index: u32, held: u64) -> u32 {
    let held = Word(held);
    if let Some(slot) = claimed((held.claimed().round() as u64) << 32 | index as u64) {
        publish(&slot, State::Empty, held.tag(), held.seen(), 0);
    }
    opaque(0)
}

/// Publishes a claimed slot: what was written to its flow before is there before the mark and the word are.
#[inline(always)]
fn publish(slot: &Slot, state: State, tag: u16, now: u32, flags: u8) {
    publish_as(slot, state, state, tag, now, flags);
}

/// The same with a mark of another state: of a dead one, nobody finds the flow until the mark is [mirrored](mirror).
#[inline(always)]
fn publish_as(slot: &Slot, state: State, marked: State, tag: u16, now: u32, flags: u8) {
    let new = Word::new(state, slot.mark.round(), tag, now);
    write_mark(slot.flow, Mark::of(new.with_state(marked), flags));
    if let Some(word) = word(slot.index) {
        // SAFETY: aligned word of FLOW_BUCKETS that this CPU claimed.
        unsafe { ptr::write_volatile(word, new.0) };
    }
}

/// A connection that is to be. Without padding: the verifier of Linux 6.1 wants all of it written.
#[repr(C)]
pub struct Connection {
    /// What its first packet becomes.
    pub rewritten: Rewritten,
    /// The way out of its first flow, and the epoch under which that was found.
    pub route: Route,
    pub epoch: u16,
    /// Of the backend.
    pub generation: u16,
    /// Index of BACKENDS.
    pub backend: u32,
    /// Where its first flow's packets come from, and its answers: as in [`Flow::from`].
    pub comes_by: u16,
    pub answers_by: u16,
    /// A guest began it: its first flow goes outside, not its answers.
    pub is_outward: bool,
    /// Its source was chosen among ones that other connections could get at the same moment (rule 9).
    pub is_exclusive: bool,
    /// A closed or half-open connection whose answers have the same key gives way. False: there was none when the source was
    /// chosen, so that one which is there by now is another CPU's that chose the same; or the source may be another one.
    pub may_replace: bool,
    pub reserved: bool,
}

const _: () = assert!(size_of::<Connection>() == 36 && size_of::<Rewritten>() == 12 && size_of::<Route>() == 8);

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
        give_back(first, arrival.now);
        return Err(Reason::TableFull);
    };
    opaque(write_reply(arrival, new, reply, first as u32, flow::tag(reply_hash)));
    let mut is_lost =
        new.is_exclusive && is_contested(reply_words[0], reply_words[1], reply_hash, mask, reply as u32) != 0;
    let is_begun = !is_lost;
    if is_begun {
        // Before it can be taken off again.
        load::add(
            Counter { backend: new.backend, generation: new.generation },
            Load::change(State::Empty, State::Opening),
        );
        opaque(write_first(arrival, new, first, reply as u32));
        let [addresses, rest] = arrival.key.words();
        is_lost = new.is_exclusive && is_contested(addresses, rest, arrival.hash, mask, first as u32) != 0;
    }
    if is_lost {
        // What has been published another connection may have got; the first flow goes with its answers.
        if let Some(reply) = claimed(reply) {
            remove(&reply);
        }
        if !is_begun {
            give_back(first, arrival.now);
        }
        return Err(Reason::ReplyInUse);
    }
    if new.is_exclusive {
        opaque(mirror(first as u32));
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
pub fn inserted_elsewhere(arrival: &Arrival) -> u64 {
    look(arrival)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn look(arrival: *const Arrival) -> u64 {
    // SAFETY: the caller's pointer is to an arrival of its own, but the verifier looks at this function alone.
    let (Some(arrival), Some(config)) = (unsafe { arrival.as_ref() }, CONFIG.get(0)) else {
        return 0;
    };
    let [addresses, rest] = arrival.key.words();
    let mut looks = nanoseconds() as u32 % (MOST_LOOKS - LEAST_LOOKS);
    while looks < MOST_LOOKS {
        let index = search(addresses, rest, arrival.hash, config.bucket_mask);
        if index != NOWHERE {
            return index as u64 | OPENED;
        }
        looks += 1;
    }
    0
}

/// Empties a slot that `claim` gave, and nothing was published in.
#[inline(always)]
fn give_back(claim: u64, now: u32) {
    if let Some(slot) = claimed(claim) {
        publish(&slot, State::Empty, 0, now, 0);
    }
}

/// 1: the flow with these key words that was just published in the slot `own` is not the only one (rule 9).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_contested(addresses: u64, rest: u64, hash: u64, mask: u32, own: u32) -> u32 {
    let Some(word) = word(own) else {
        return 1;
    };
    // The one atomic operation without another purpose: a full barrier, so that what was published is seen before others
    // are looked for.
    // SAFETY: aligned word of FLOW_BUCKETS.
    unsafe {
        let held = ptr::read_volatile(word);
        atomic::compare_and_swap(word, held, held);
    }
    // By the word: what is not seen yet has a mark that is dead.
    let is_other = |index: u32, word: *mut u64| {
        // SAFETY: aligned word of FLOW_BUCKETS.
        let state = Word(unsafe { ptr::read_volatile(word) }).state() as u8;
        index != own
            && state > State::Busy as u8
            && other::flow(index).is_some_and(|flow| has_key(flow, [addresses, rest]))
    };
    opaque((search_where(is_other, hash, mask) != NOWHERE) as u32)
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
            (*flow).hop = Hop::unknown(slot.mark.round(), arrival.now);
            (*flow).from = new.answers_by;
            begin(flow, peer, new);
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
            begin(flow, peer, new);
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
unsafe fn begin(flow: *mut Flow, peer: u32, new: &Connection) {
    // SAFETY: as the caller promises.
    unsafe {
        (*flow).generation = new.generation;
        (*flow).peer = peer;
        (*flow).packets = 0;
        (*flow).volume = Volume::default();
    }
}
