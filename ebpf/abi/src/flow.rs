//! The flow table: a set-associative hash table in two arrays, and its race rules.
//!
//! A [`Bucket`] is one 64-byte cache line of [`WAYS`] slot words; the flow of way `w` of bucket `b` is element
//! `b * WAYS + w` of FLOWS. So a lookup is one hash, one line of words, one line of flow. Every connection has two
//! flows, one for each direction, that name each other by [`Flow::peer`].
//!
//! # The slot word
//! ```text
//! 63            32 31     16 15      8 7      0
//! |  seen: jiffies |   tag   |  round  | state |
//! ```
//! `tag` is 16 bits of the flow's hash, `round` counts how often the slot was claimed, `seen` is when a packet last
//! hit it.
//!
//! # Race rules
//! CPUs and the controller's sweeper meet in a slot without locks. x86-64 and arm64 write aligned words whole.
//! 1. Who takes a slot compare-and-swaps its whole word to `Busy` with the next round; only the winner writes the
//!    flow, and then stores the word that publishes it. Nobody touches a `Busy` slot.
//! 2. Who reads a flow compares the slot's round and tag before and after copying it: a slot that was claimed in
//!    between reads as a miss.
//! 3. A hit stores only `seen`, as a 32-bit write of the word's upper half: it can delay a claim's compare-and-swap,
//!    never undo it. A `seen` written just after a claim only makes the new flow look fresh.
//! 4. Every change of `state` is a compare-and-swap of the whole word; who loses it leaves the state to the winner.
//! 5. Who moves a connection's *first* flow (the one without [`FLAG_REPLY`]) from a live state to `Closed`, `Busy` or
//!    `Empty` takes one off its backend's load: so it is taken off exactly once.
//! 6. The next hop and the counters in a flow are written without claiming it, by CPUs that handle its packets; a torn
//!    next hop cannot be seen because the writer stores the epoch that validates it last.
//! 7. Two CPUs that meet the same new flow at once may both insert it: lookups use the first, the other is never hit
//!    and ages out as an embryo.

use crate::{Be16, Be32};

/// Slots of a bucket.
pub const WAYS: usize = 8;

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
    /// Index of the meter that limits it; 0: none. Kept for bandwidth limits.
    pub meter: u16,
    /// `FLAG_*`.
    pub flags: u8,
    pub reserved: u8,
    /// Bytes forwarded, from the Ethernet header.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Flow>() == 64 && size_of::<FlowKey>() == 16 && size_of::<Bucket>() == 64);

/// The flow goes from backend to client.
pub const FLAG_REPLY: u8 = 1;

/// One cache line of slot words.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    pub words: [u64; WAYS],
}

crate::pod!(FlowKey, Flow, Bucket);

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

/// The tag of a flow's hash: bits that its bucket number does not use.
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
    fn age_is_zero_for_a_hit_that_is_a_moment_ahead_and_survives_the_wrap_of_jiffies() {
        assert_eq!(Word::new(State::Opening, 0, 0, 5).age(4), 0);
        assert_eq!(Word::new(State::Opening, 0, 0, u32::MAX).age(1), 2);
    }
}
