//! The mirror of a slot word in its flow: what a hit needs of it.

use super::{FLAG_OUTWARD, FLAG_REPLY, State, TOUCH_PERIOD, Word};

/// The mirror of a slot's word in its flow, one aligned 32-bit word:
/// ```text
/// 31   24 23     16 15      8 7      0
/// | flags | touched | version | state |
/// ```
/// `touched` counts the periods of [`TOUCH_PERIOD`], `flags` are the flow's `FLAG_*`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(pub u32);

impl Mark {
    #[inline(always)]
    pub const fn new(state: State, version: u8, now: u32, flags: u8) -> Self {
        Self((flags as u32) << 24 | (period(now) as u32) << 16 | (version as u32) << 8 | state as u32)
    }

    /// The mirror of a word.
    #[inline(always)]
    pub const fn of(word: Word, flags: u8) -> Self {
        Self::new(word.state(), word.version(), word.seen(), flags)
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
    pub const fn flags(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// True for the flow that answers its connection's first packet.
    #[inline(always)]
    pub const fn is_reply(self) -> bool {
        self.flags() & FLAG_REPLY != 0
    }

    /// True for the flow that goes from a backend or guest to the outside.
    #[inline(always)]
    pub const fn is_outward(self) -> bool {
        self.flags() & FLAG_OUTWARD != 0
    }

    /// True unless the slot is empty or being written.
    #[inline(always)]
    pub const fn is_live(self) -> bool {
        self.0 as u8 > State::Busy as u8
    }

    /// True if the slot still holds the flow that was live under the mark `before`.
    #[inline(always)]
    pub const fn still(self, before: Self) -> bool {
        (self.0 ^ before.0) & 0xff00 == 0 && self.is_live()
    }

    /// True when the last hit's time was stored in another period than `now`.
    #[inline(always)]
    pub const fn is_stale(self, now: u32) -> bool {
        (self.0 >> 16) as u8 != period(now)
    }

    /// The mark of the same flow in the state of its slot's word; `None` if the slot belongs to another flow by now, or the
    /// states agree.
    #[inline(always)]
    pub const fn following(self, word: Word) -> Option<Self> {
        let state = word.0 as u8;
        if self.version() != word.version() || self.0 as u8 == state {
            return None;
        }
        Some(Self(self.0 & !0xff | state as u32))
    }
}

/// The period that a time in jiffies is in; wraps.
#[inline(always)]
pub const fn period(now: u32) -> u8 {
    (now >> TOUCH_PERIOD) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_follows_its_word_and_no_other_flows() {
        let mark = Mark::new(State::Opening, 7, 5 << TOUCH_PERIOD, FLAG_REPLY);
        let word = |state, version| Word::new(state, version, 0xbeef, 99);
        let moved = mark.following(word(State::Established, 7)).expect("another state");
        assert_eq!((moved.state(), moved.version(), moved.flags()), (State::Established, 7, FLAG_REPLY));
        assert!(
            moved.still(mark)
                && moved.is_reply()
                && !moved.is_stale((6 << TOUCH_PERIOD) - 1)
                && moved.is_stale(6 << TOUCH_PERIOD)
        );
        assert_eq!(mark.following(word(State::Opening, 7)), None);
        assert_eq!(mark.following(word(State::Established, 8)), None);
        let dead = mark.following(word(State::Empty, 7)).expect("another state");
        assert!(!dead.is_live() && !dead.still(mark));
        assert!(!Mark::new(State::Opening, 8, 0, 0).still(mark));
    }
}
