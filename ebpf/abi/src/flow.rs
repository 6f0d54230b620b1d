//! The flow table: a set-associative hash table in two arrays, and its race rules.
//!
//! A [`Bucket`] is one 64-byte cache line of [`WAYS`] slot words; the flow of way `w` of bucket `b` is element
//! `b * WAYS + w` of FLOWS, a line of its own. Every connection has two flows, one for each direction, that name each
//! other by [`Flow::peer`].
//!
//! A flow's hash names its bucket and the way that it prefers there ([`preferred`]). An insert takes that way when it is
//! empty, which it is for most flows of a table that is not crowded; and a flow's line holds a [`Mark`], a mirror of its
//! slot word. So a hit reads one line: with many flows nothing costs more than the lines that are not in the cache. Only
//! a flow that is not in its preferred way is searched in the line of words.
//!
//! # The slot word
//! ```text
//! 63            32 31     16 15      8 7      0
//! |  seen: jiffies |   tag   |  round  | state |
//! ```
//! `tag` is 16 bits of the flow's hash, `round` counts how often the slot was claimed, `seen` is when a packet last
//! hit it (to a period of [`TOUCH_PERIOD`]).
//!
//! # Race rules
//! CPUs and the controller's sweeper meet in a slot without locks. x86-64 and arm64 write aligned words whole.
//! 1. Who takes a slot compare-and-swaps its whole word to `Busy` with the next round; only the winner writes the
//!    flow, and then stores the word that publishes it. Nobody touches a `Busy` slot. Who removes a connection
//!    claims a slot of it, too, so that what it reads there is the flow that it removes.
//! 2. Who claimed a slot marks its flow dead before it writes it, and live after. Who reads a flow compares the mark's
//!    round before and after copying it: a flow that was dead, or that was claimed in between, reads as a miss.
//! 3. A hit stores only `seen`, as a 32-bit write of the word's upper half, and `touched`, a byte of the mark: it can delay
//!    a compare-and-swap, never undo it. A `seen` written just after a claim only makes the new flow look fresh.
//! 4. Every change of `state` is a compare-and-swap of the whole word; who loses it leaves the state to the winner. The
//!    winner then brings the mark to the word: it reads the mark, then the word, and compare-and-swaps the mark to the
//!    word's state while both are of one round. Whoever comes last has seen the last word.
//!    `Closed` is left for `Busy` and `Empty` only: what comes late for a connection that is over does not revive it.
//! 5. Who moves a connection's *first* flow (the one without [`FLAG_REPLY`]) from a live state to `Closed`, `Busy` or
//!    `Empty` takes one off its backend's load; who moves it to or from a state that [is admitted](State::is_admitted)
//!    adds one to its service's load or takes one off: so each is counted exactly once.
//! 6. The next hop and the counters in a flow are written without claiming it, by CPUs that handle its packets; a torn
//!    next hop cannot be seen because the writer stores the epoch that validates it last.
//! 7. Two CPUs that meet the same new flow at once may both insert it: lookups use the first, the other is never hit
//!    and ages out as an embryo.
//! 8. A connection is in one table. Only the controller moves it to another: it copies it, waits until nobody who looked
//!    before that is still at work, brings the copy to what was changed meanwhile, and empties the old slots.
//! 9. Where two CPUs may choose the same source for different clients, a new connection gives up when one is there already that
//!    was not when it chose; else it publishes the flow of its answers first, and then looks for another one with the same
//!    key: whoever finds one empties its own slots again, before any packet has left. Both may give up, which costs each
//!    client a packet; never do both stay.

use crate::{Be16, Be32};

/// Slots of a bucket.
pub const WAYS: usize = 8;

/// Binary logarithm of the jiffies between two stores of a busy flow's time: 1 to 10 seconds. The slot words stay
/// unmodified cache lines that most hits do not read. Who compares a slot's age allows for it.
pub const TOUCH_PERIOD: u32 = 10;

/// The IPv4 5-tuple as the packet has it on arrival.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    pub src: Be32,
    pub dst: Be32,
    pub sport: Be16,
    pub dport: Be16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Routing domain; 0 until one router serves overlapping networks.
    pub zone: u8,
    /// VLAN id, 0 for untagged.
    pub vlan: u16,
}

impl FlowKey {
    /// The key as two machine words, in memory order: what lookups compare.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 2] {
        let addresses = ((self.dst as u64) << 32) | self.src as u64;
        let rest = ((self.vlan as u64) << 48)
            | ((self.zone as u64) << 40)
            | ((self.protocol as u64) << 32)
            | ((self.dport as u64) << 16)
            | self.sport as u64;
        [addresses, rest]
    }
}

/// One direction of a connection: everything that its packets need.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    pub key: FlowKey,
    /// The rewrite: what the packet carries when it leaves.
    pub new_src: Be32,
    pub new_dst: Be32,
    pub new_sport: Be16,
    pub new_dport: Be16,
    /// The way out: index of PORTS, or [`crate::port::STACK`].
    pub port: u16,
    /// Destination MAC address on the way out.
    pub next_hop: [u8; 6],
    /// [`crate::config::Config::epoch`] under which `port` and `next_hop` were found.
    pub epoch: u16,
    /// [`crate::backend::Backend::generation`] under which the flow was made.
    pub generation: u16,
    /// Index of BACKENDS.
    pub backend: u32,
    /// Index in FLOWS of the other direction.
    pub peer: u32,
    /// Packets forwarded; wraps.
    pub packets: u32,
    /// What a hit needs of the slot word.
    pub mark: Mark,
    /// Bytes forwarded, from the Ethernet header.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Flow>() == 64 && size_of::<FlowKey>() == 16 && size_of::<Bucket>() == 64);

/// The flow answers its connection's first packet.
pub const FLAG_REPLY: u8 = 1;
/// The flow goes from a backend or guest to the outside: its source is translated, its destination is not the router's.
/// Of a connection that came from outside that is the answering one, of a guest's own the first one.
pub const FLAG_OUTWARD: u8 = 2;

/// The mirror of a slot's word in its flow, one aligned 32-bit word:
/// ```text
/// 31   24 23     16 15      8 7      0
/// | flags | touched |  round  | state |
/// ```
/// `touched` counts the periods of [`TOUCH_PERIOD`], `flags` are the flow's `FLAG_*`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(pub u32);

impl Mark {
    #[inline(always)]
    pub const fn new(state: State, round: u8, now: u32, flags: u8) -> Self {
        Self((flags as u32) << 24 | (period(now) as u32) << 16 | (round as u32) << 8 | state as u32)
    }

    /// The mirror of a word.
    #[inline(always)]
    pub const fn of(word: Word, flags: u8) -> Self {
        Self::new(word.state(), word.round(), word.seen(), flags)
    }

    #[inline(always)]
    pub const fn state(self) -> State {
        State::from_byte(self.0 as u8)
    }

    #[inline(always)]
    pub const fn round(self) -> u8 {
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

    /// True for the flow that leaves a backend or guest.
    #[inline(always)]
    pub const fn is_outward(self) -> bool {
        self.flags() & FLAG_OUTWARD != 0
    }

    /// True unless the slot is empty or being written.
    #[inline(always)]
    pub const fn is_live(self) -> bool {
        self.0 as u8 > State::Busy as u8
    }

    /// True while a flow that was live under the mark `before` still is the same one.
    #[inline(always)]
    pub const fn still(self, before: Self) -> bool {
        (self.0 ^ before.0) & 0xff00 == 0 && self.is_live()
    }

    /// True when the last hit's time was stored in another period than `now`.
    #[inline(always)]
    pub const fn is_stale(self, now: u32) -> bool {
        (self.0 >> 16) as u8 != period(now)
    }

    /// The mark of the same flow in the state of its slot's word; `None`: the slot is another flow's by now, or they
    /// agree.
    #[inline(always)]
    pub const fn following(self, word: Word) -> Option<Self> {
        let state = word.0 as u8;
        if self.round() != word.round() || self.0 as u8 == state {
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

/// The slot that a flow with this hash prefers.
#[inline(always)]
pub const fn preferred(hash: u64, bucket_mask: u32) -> u32 {
    (hash as u32 & bucket_mask) * WAYS as u32 + (hash >> 45) as u32 % WAYS as u32
}

/// One cache line of slot words.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    pub words: [u64; WAYS],
}

crate::pod!(FlowKey, Flow, Bucket);

/// Offset of [`Flow::mark`], in bytes, for who changes it atomically.
pub const MARK_OFFSET: usize = core::mem::offset_of!(Flow, mark);
const _: () = assert!(MARK_OFFSET.is_multiple_of(4));

/// A slot's state: the low byte of its word. In the order in which eviction prefers them, but for `Busy`.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    Empty = 0,
    /// Being written by who claimed it.
    Busy = 1,
    /// TCP after RST or both FINs.
    Closed = 2,
    /// TCP with only a SYN seen, UDP without an answer.
    Opening = 3,
    /// TCP with the SYN-ACK seen, the handshake's last ACK outstanding.
    Answered = 4,
    /// UDP, answered.
    Datagrams = 5,
    /// TCP with a FIN from this direction.
    Closing = 6,
    /// TCP, handshake complete.
    Established = 7,
}

impl State {
    /// The state that a word's low byte names; an unknown byte reads as `Busy`, which nobody touches.
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Empty,
            2 => Self::Closed,
            3 => Self::Opening,
            4 => Self::Answered,
            5 => Self::Datagrams,
            6 => Self::Closing,
            7 => Self::Established,
            _ => Self::Busy,
        }
    }

    /// True for the states that count against a listener's limit: both sides have spoken, and of a TCP connection the
    /// handshake is complete. So a flood of first packets fills no listener.
    #[inline(always)]
    pub const fn is_admitted(self) -> bool {
        self as u8 >= Self::Datagrams as u8
    }

    /// True for the states that count as a connection of the backend.
    #[inline(always)]
    pub const fn is_live(self) -> bool {
        self as u8 > Self::Closed as u8
    }
}

/// A slot word, taken apart and put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Word(pub u64);

impl Word {
    /// The bits that identify who is in the slot: round and tag.
    pub const IDENTITY: u64 = 0xffff_ff00;

    #[inline(always)]
    pub const fn new(state: State, round: u8, tag: u16, seen: u32) -> Self {
        Self(((seen as u64) << 32) | ((tag as u64) << 16) | ((round as u64) << 8) | state as u64)
    }

    #[inline(always)]
    pub const fn state(self) -> State {
        State::from_byte(self.0 as u8)
    }

    #[inline(always)]
    pub const fn round(self) -> u8 {
        (self.0 >> 8) as u8
    }

    #[inline(always)]
    pub const fn tag(self) -> u16 {
        (self.0 >> 16) as u16
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
        Self::new(State::Busy, self.round().wrapping_add(1), self.tag(), self.seen())
    }

    /// True when both words show the same flow in the slot, whatever its state and time.
    #[inline(always)]
    pub const fn same_flow(self, other: Self) -> bool {
        (self.0 ^ other.0) & Self::IDENTITY == 0
    }

    /// Jiffies since the last hit. A `seen` that another CPU stored a moment after `now` was read counts as 0.
    #[inline(always)]
    pub const fn age(self, now: u32) -> u32 {
        let age = now.wrapping_sub(self.seen());
        if age > u32::MAX / 2 { 0 } else { age }
    }

    /// How gladly an insert takes this slot, the highest first: empty, then closed, then embryos, then UDP, oldest
    /// first within each. A rank for which [`is_evictable`] is false belongs to a slot that no new flow may take: an
    /// established TCP flow is swept when idle, never evicted.
    ///
    /// Without branches: the kernel's verifier follows every path of a loop over a bucket.
    #[inline(always)]
    pub const fn eviction_rank(self, now: u32) -> u64 {
        // A nibble for each state, by its number.
        const CLASSES: u32 = 0x0012_2304;
        let class = (CLASSES >> ((self.0 as u32 & 7) * 4)) & 0xf;
        // Biased, so that a `seen` a moment after `now` counts as young instead of ancient.
        let age = now.wrapping_sub(self.seen()).wrapping_add(1 << 31);
        ((class as u64) << 32) | age as u64
    }
}

/// True for the rank of a slot that a new flow may take.
#[inline(always)]
pub const fn is_evictable(rank: u64) -> bool {
    rank >> 32 != 0
}

/// Way numbers whose slots carry a tag, as a set: bit `w` for way `w`.
///
/// Built and taken apart without branches: where a flow lies in its bucket is random, so that a branch on it would be
/// mispredicted, and the verifier would follow each way apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ways(u32);

impl Ways {
    /// Adds `way` if the word carries `tag`.
    #[inline(always)]
    pub const fn with_match(self, way: usize, word: Word, tag: u16) -> Self {
        let difference = (word.0 >> 16 & 0xffff) ^ tag as u64;
        Self(self.0 | ((difference.wrapping_sub(1) >> 63) as u32) << way)
    }

    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The lowest way of a set that is not empty, and the others.
    #[inline(always)]
    pub const fn pop(self) -> (usize, Self) {
        // A de Bruijn sequence of 8 bits: its product with each power of two has other upper bits.
        const SEQUENCE: u32 = 0x17;
        const WAY_BY_PRODUCT: u32 = 0x5637_4210;
        let lowest = self.0 & self.0.wrapping_neg();
        let product = ((lowest * SEQUENCE) >> 5) & 7;
        let way = (WAY_BY_PRODUCT >> (product * 4)) & 7;
        (way as usize, Self(self.0 & self.0.wrapping_sub(1)))
    }
}

/// The tag of a flow's hash: bits that neither its bucket number nor its preferred way use.
#[inline(always)]
pub const fn tag(hash: u64) -> u16 {
    (hash >> 48) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_come_back_lowest_first() {
        let mut all = Ways::default();
        for way in 0..WAYS {
            let one = Ways::default().with_match(way, Word::new(State::Established, 9, 0xabcd, 7), 0xabcd);
            assert_eq!(one.pop(), (way, Ways::default()));
            all = all.with_match(way, Word::new(State::Opening, 0, 0, 0), 0);
        }
        for way in 0..WAYS {
            let (lowest, rest) = all.pop();
            assert_eq!(lowest, way);
            all = rest;
        }
        assert!(all.is_empty());
    }

    #[test]
    fn a_word_with_another_tag_matches_no_way() {
        let word = Word::new(State::Established, 1, 0x1234, u32::MAX);
        for tag in [0, 1, 0x1233, 0x1235, 0x3412, 0xffff] {
            assert!(Ways::default().with_match(3, word, tag).is_empty());
        }
    }

    #[test]
    fn eviction_prefers_empty_then_closed_then_embryos_then_datagrams_oldest_first() {
        let now = 1000;
        let rank = |state, seen| Word::new(state, 0, 0, seen).eviction_rank(now);
        let order = [
            rank(State::Empty, 0),
            rank(State::Closed, 10),
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
        let word = Word::new(State::Opening, 255, 0xbeef, 42);
        let claimed = word.claimed();
        assert_eq!((claimed.state(), claimed.round(), claimed.tag(), claimed.seen()), (State::Busy, 0, 0xbeef, 42));
        assert!(!claimed.same_flow(word));
        assert!(word.with_state(State::Closed).same_flow(word));
    }

    #[test]
    fn a_mark_follows_its_word_and_no_other_flows() {
        let mark = Mark::new(State::Opening, 7, 5 << TOUCH_PERIOD, FLAG_REPLY);
        let word = |state, round| Word::new(state, round, 0xbeef, 99);
        let moved = mark.following(word(State::Established, 7)).expect("another state");
        assert_eq!((moved.state(), moved.round(), moved.flags()), (State::Established, 7, FLAG_REPLY));
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

    #[test]
    fn a_preferred_slot_is_in_the_hashes_bucket() {
        for hash in [0, 0x5eed_0000_0000_0003, u64::MAX, 1 << 45, 7 << 45] {
            let slot = preferred(hash, 0x3ff);
            assert_eq!(slot / WAYS as u32, hash as u32 & 0x3ff);
        }
        assert_eq!(preferred(5 << 45 | 2, 3), 2 * 8 + 5);
    }

    #[test]
    fn age_is_zero_for_a_hit_that_is_a_moment_ahead_and_survives_the_wrap_of_jiffies() {
        assert_eq!(Word::new(State::Opening, 0, 0, 5).age(4), 0);
        assert_eq!(Word::new(State::Opening, 0, 0, u32::MAX).age(1), 2);
    }
}
