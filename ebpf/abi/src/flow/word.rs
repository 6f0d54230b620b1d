//! Slot words: which flow is in a slot, in which state, and since when.

use super::TOUCH_PERIOD;

/// A slot's state: the low byte of its word. In the order in which eviction prefers them, but for `Busy`.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    Empty = 0,
    /// Being written by the CPU that claimed it.
    Busy = 1,
    /// TCP after both FINs, or after a RST while half-open: see [`State::is_over`].
    Closed = 2,
    /// TCP after a RST. It may be forged, and the connection a silent one, so this state lasts longer.
    Reset = 3,
    /// As Closed or Reset, but this direction went on after the grace period.
    Resumed = 4,
    /// TCP with only a SYN seen, UDP without an answer.
    Opening = 5,
    /// TCP with the SYN-ACK seen, the handshake's last ACK outstanding.
    Answered = 6,
    /// UDP, answered.
    Datagrams = 7,
    /// TCP with a FIN from this direction.
    Closing = 8,
    /// TCP, handshake complete.
    Established = 9,
}

impl State {
    /// The state that a word's low byte names; an unknown byte is `Busy`, which no CPU touches.
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Empty,
            2 => Self::Closed,
            3 => Self::Reset,
            4 => Self::Resumed,
            5 => Self::Opening,
            6 => Self::Answered,
            7 => Self::Datagrams,
            8 => Self::Closing,
            9 => Self::Established,
            _ => Self::Busy,
        }
    }

    /// True for the states that count against a listener's limit: both sides have sent packets, and a TCP connection's
    /// handshake is complete. So a flood of first packets does not fill a listener.
    #[inline(always)]
    pub const fn is_admitted(self) -> bool {
        self as u8 >= Self::Datagrams as u8
    }

    /// True for the states that count as a connection of the backend.
    #[inline(always)]
    pub const fn is_live(self) -> bool {
        self as u8 > Self::Resumed as u8
    }

    /// True for a connection that is over according to its packets. Sequence numbers are not checked, so anybody
    /// who knows its addresses and ports may have forged the close. Its packets are still forwarded, and it is live again
    /// - once both directions go on more than a second after the close: one side alone, or packets that were in flight,
    ///   prove nothing,
    /// - or when its backend answers a new SYN.
    #[inline(always)]
    pub const fn is_over(self) -> bool {
        self as u8 >= Self::Closed as u8 && self as u8 <= Self::Resumed as u8
    }

    /// A slot only moves to this state from states after the returned one: a connection that is over stays over.
    #[inline(always)]
    pub const fn comes_after(self) -> Self {
        if self as u8 <= Self::Reset as u8 { Self::Busy } else { Self::Resumed }
    }
}

/// A slot word, taken apart and put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Word(pub u64);

impl Word {
    /// The bits that identify the flow in the slot: version and tag.
    pub const IDENTITY: u64 = 0x7fff_ff00;
    /// The bucket's mark, not the slot's.
    const OVERFLOW: u64 = 1 << 31;
    /// In an eviction's rank: from this bit on the class, 0 for a slot that cannot be evicted.
    pub(super) const CLASS: u32 = 32;

    #[inline(always)]
    pub const fn new(state: State, version: u8, tag: u16, seen: u32) -> Self {
        Self(((seen as u64) << 32) | ((tag as u64 & 0x7fff) << 16) | ((version as u64) << 8) | state as u64)
    }

    #[inline(always)]
    pub const fn state(self) -> State {
        State::from_byte(self.0 as u8)
    }

    #[inline(always)]
    pub const fn version(self) -> u8 {
        (self.0 >> 8) as u8
    }

    #[inline(always)]
    pub const fn tag(self) -> u16 {
        (self.0 >> 16) as u16 & 0x7fff
    }

    /// True if the bucket has overflowed (rule 10). If false, another one of its words may have the mark.
    #[inline(always)]
    pub const fn has_overflowed(self) -> bool {
        self.0 & Self::OVERFLOW != 0
    }

    /// The same word with the bucket's mark.
    #[inline(always)]
    pub const fn overflowed(self) -> Self {
        Self(self.0 | Self::OVERFLOW)
    }

    /// The same word with the mark if `held`, the word that it replaces, has it.
    #[inline(always)]
    pub const fn after(self, held: Self) -> Self {
        Self(self.0 | held.0 & Self::OVERFLOW)
    }

    /// Low 32 bits of jiffies when a packet last hit the slot.
    #[inline(always)]
    pub const fn seen(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The same word in another state.
    #[inline(always)]
    pub const fn with_state(self, state: State) -> Self {
        Self((self.0 & !0xff) | state as u64)
    }

    /// The word that claims this slot.
    #[inline(always)]
    pub const fn claimed(self) -> Self {
        Self::new(State::Busy, self.version().wrapping_add(1), self.tag(), self.seen()).after(self)
    }

    /// Names this slot while it holds its current flow: its index, and above 32 bits its version.
    #[inline(always)]
    pub const fn found_at(self, index: u32) -> u64 {
        (self.version() as u64) << 32 | index as u64
    }

    /// True if both words are of the same flow, whatever its state and time.
    #[inline(always)]
    pub const fn same_flow(self, other: Self) -> bool {
        (self.0 ^ other.0) & Self::IDENTITY == 0
    }

    /// Jiffies since the last hit; 0 if another CPU stored `seen` just after `now` was read.
    #[inline(always)]
    pub const fn age(self, now: u32) -> u32 {
        let age = now.wrapping_sub(self.seen());
        if age > u32::MAX / 2 { 0 } else { age }
    }

    /// True if more than `seconds` (of `second` jiffies each) have passed at this age. Allows for times that are only
    /// stored once in a while.
    #[inline(always)]
    pub const fn has_passed(age: u32, seconds: u32, second: u32) -> bool {
        age as u64 > seconds as u64 * second as u64 + (1 << TOUCH_PERIOD)
    }

    /// The order in which inserts take slots, the highest rank first: empty, then closed, then half-open, then UDP, oldest
    /// first within each. If [`is_evictable`](super::is_evictable) is false for a rank, no new flow may take the slot: an
    /// established TCP flow is only evicted when it has been idle for too long.
    ///
    /// Without branches: the kernel's verifier follows every path of a loop over a bucket.
    #[inline(always)]
    pub const fn eviction_rank(self, now: u32) -> u64 {
        // A nibble for each state, by its number.
        const CLASSES: u64 = 0x1223_3304;
        let class = (CLASSES >> ((self.0 as u32 & 15) * 4)) & 0xf;
        // Biased, so that a `seen` just after `now` counts as young instead of ancient.
        let age = now.wrapping_sub(self.seen()).wrapping_add(1 << 31);
        (class << Self::CLASS) | age as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::is_evictable;

    #[test]
    fn eviction_prefers_empty_then_closed_then_half_open_then_datagrams_oldest_first() {
        let now = 1000;
        let rank = |state, seen| Word::new(state, 0, 0, seen).eviction_rank(now);
        let order = [
            rank(State::Empty, 0),
            rank(State::Closed, 10),
            rank(State::Resumed, 15),
            rank(State::Reset, 17),
            rank(State::Closed, 20),
            rank(State::Opening, 10),
            rank(State::Answered, 20),
            rank(State::Opening, 1001),
            rank(State::Datagrams, 10),
            rank(State::Datagrams, 20),
        ];
        assert!(order.is_sorted_by(|a, b| a > b), "{order:x?}");
        assert!(order.into_iter().all(is_evictable));
        for state in [State::Busy, State::Closing, State::Established] {
            assert!(!is_evictable(rank(state, 0)));
        }
    }

    #[test]
    fn a_claim_keeps_the_tag_and_changes_the_identity() {
        let word = Word::new(State::Opening, 255, 0x3eef, 42);
        let claimed = word.claimed();
        assert_eq!((claimed.state(), claimed.version(), claimed.tag(), claimed.seen()), (State::Busy, 0, 0x3eef, 42));
        assert!(!claimed.same_flow(word));
        assert!(word.with_state(State::Closed).same_flow(word));
    }

    #[test]
    fn the_buckets_mark_outlasts_whoever_is_in_the_slot_and_is_no_part_of_who_that_is() {
        let word = Word::new(State::Established, 7, u16::MAX, 42);
        assert!(!word.has_overflowed());
        let marked = word.overflowed();
        assert!(marked.same_flow(word) && marked.tag() == word.tag());
        assert!(marked.with_state(State::Empty).has_overflowed() && marked.claimed().has_overflowed());
        let next = Word::new(State::Opening, marked.claimed().version(), 5, 43);
        assert!(next.after(marked).has_overflowed() && next.after(marked).same_flow(next));
        assert!(!next.after(word).has_overflowed());
    }

    #[test]
    fn a_time_has_passed_when_no_later_hit_can_have_been_left_out_and_sums_do_not_overflow() {
        let lag = 1 << TOUCH_PERIOD;
        assert!(Word::has_passed(6001 + lag, 6, 1000) && !Word::has_passed(6000 + lag, 6, 1000));
        assert!(!Word::has_passed(u32::MAX, u32::MAX, 1000));
    }

    #[test]
    fn age_is_zero_for_a_hit_that_is_a_moment_ahead_and_survives_the_wrap_of_jiffies() {
        assert_eq!(Word::new(State::Opening, 0, 0, 5).age(4), 0);
        assert_eq!(Word::new(State::Opening, 0, 0, u32::MAX).age(1), 2);
    }
}
