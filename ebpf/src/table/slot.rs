//! A slot: its word, its flow's mark, and the changes that the flow's packets make.

use core::{
    ptr,
    sync::atomic::{Ordering, compiler_fence},
};

use vipgate_abi::flow::{self, Bucket, Flow, Mark, State, WAYS, Word};

use crate::{
    atomic,
    secondary::{self, SECONDARY},
    verifier::opaque,
};

/// A flow in its slot.
#[derive(Clone, Copy)]
pub struct Slot {
    /// Index in FLOWS, or in OTHER_FLOWS (see `secondary`).
    pub index: u32,
    pub flow: *mut Flow,
    /// The flow's mark when the slot was found: identifies the flow that the slot should hold.
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

    /// The state that the flow in the slot has now; `Empty` if it has left.
    #[inline(always)]
    pub fn state(&self) -> State {
        // SAFETY: aligned word of FLOW_BUCKETS.
        let word = word(self.index).map(|word| Word(unsafe { ptr::read_volatile(word) }));
        word.filter(|word| word.version() == self.mark.version()).map_or(State::Empty, Word::state)
    }

    /// Changes the slot's state (rule 4). Returns the state before; `None` if it already is in that state, is over, holds
    /// another flow, or another CPU won the race.
    #[inline(always)]
    pub fn move_to(&self, state: State) -> Option<State> {
        self.change(state.comes_after() as u32 + 1, u8::MAX as u32, state)
    }

    /// [`Slot::move_to`] for a slot that is [over](State::is_over), and in the state `from` or a later one.
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
        opaque(sync_mark(self.index));
        Some(left)
    }

    /// Jiffies since the time in the slot's word; the maximum if there is no such slot.
    #[inline(always)]
    pub fn age(&self, now: u32) -> u32 {
        // SAFETY: aligned word of FLOW_BUCKETS.
        word(self.index).map_or(u32::MAX, |word| Word(unsafe { ptr::read_volatile(word) }).age(now))
    }
}

/// Changes the state of a slot that holds the flow of this mark, if its state is in the range `from` (the first state, and
/// above 8 bits the last). Returns the state before; `Empty` if nothing changed.
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
        if word.version() != Mark(mark).version() || held == state || held < from & 0xff || held > from >> 8 {
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

/// No slot.
pub(super) const NOWHERE: u32 = u32::MAX;

/// The word of a slot.
#[inline(always)]
pub(super) fn word(index: u32) -> Option<*mut u64> {
    let bucket = secondary::bucket(((index & !SECONDARY) / WAYS as u32) | (index & SECONDARY))?;
    // SAFETY: the way is below WAYS.
    Some(unsafe { words(bucket).add(index as usize % WAYS) })
}

/// The slot with this index.
#[inline(always)]
pub fn slot(index: u32) -> Option<Slot> {
    let flow = secondary::flow(index)?;
    // SAFETY: aligned word of FLOW_BUCKETS.
    let word = Word(unsafe { ptr::read_volatile(word(index)?) });
    Some(Slot { index, flow, mark: Mark::of(word, read_mark(flow).flags()) })
}

/// The slot that [`Word::found_at`] names, if it still holds the same flow.
#[inline(always)]
pub fn found(name: u64) -> Option<Slot> {
    slot(name as u32).filter(|slot| slot.mark.version() == (name >> 32) as u8)
}

#[inline(always)]
pub(super) fn words(bucket: *mut Bucket) -> *mut u64 {
    // SAFETY: projects within the bucket.
    unsafe { ptr::addr_of_mut!((*bucket).words).cast::<u64>() }
}

#[inline(always)]
fn mark(flow: *mut Flow) -> *mut u32 {
    // SAFETY: projects within the flow.
    unsafe { ptr::addr_of_mut!((*flow).mark).cast::<u32>() }
}

#[inline(always)]
pub(super) fn read_mark(flow: *mut Flow) -> Mark {
    compiler_fence(Ordering::Acquire);
    // SAFETY: aligned word of FLOWS.
    let mark = Mark(unsafe { ptr::read_volatile(mark(flow)) });
    compiler_fence(Ordering::Acquire);
    mark
}

#[inline(always)]
pub(super) fn write_mark(flow: *mut Flow, new: Mark) {
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

/// Stores the time of a packet that may show that a connection is alive, although it is over (rule 4).
#[inline(always)]
pub fn touch_over(index: u32, now: u32) {
    opaque(touch_at(index, now, 1));
}

/// Stores the time of a hit of the other direction. This direction's route is still looked up again when its own packets come.
#[inline(always)]
pub fn touch_peer(index: u32, now: u32) {
    if let Some(word) = word(index) {
        // SAFETY: the upper half of an aligned word of FLOW_BUCKETS (little-endian).
        unsafe { ptr::write_volatile(word.cast::<u32>().add(1), now) };
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn touch_at(index: u32, now: u32, is_over: u32) -> u32 {
    if let (Some(word), Some(flow)) = (word(index), secondary::flow(index)) {
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

/// Sets the state in a flow's mark to the one in its slot's word (rule 4).
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn sync_mark(index: u32) -> u32 {
    if let (Some(word), Some(flow)) = (word(index), secondary::flow(index)) {
        let mut tries = 0;
        // Hits and other changes of the state make the swap fail. Whoever changes the state also synchronises the mark.
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
