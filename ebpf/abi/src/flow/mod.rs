//! The flow table: a set-associative hash table in two arrays, and its race rules.
//!
//! A [`Bucket`] is one 64-byte cache line of [`WAYS`] slot words; the flow of way `w` of bucket `b` is element
//! `b * WAYS + w` of FLOWS, a line of its own. Every connection has two flows, one for each direction, that name each
//! other by [`Flow::peer`].
//!
//! A flow's hash names [`CANDIDATES`] buckets in order, and the way that it prefers in the first one, its home
//! ([`preferred`]). An insert takes that way when it is empty, which it is for most flows of a table that is not crowded; and
//! a flow's line holds a [`Mark`], a mirror of its slot word. So a hit reads one line: with many flows, cache misses dominate
//! the cost. Only a flow that is not in its preferred way is searched in the line of words of its home; and only where that
//! has overflowed, in its other buckets.
//!
//! An insert goes on to the next bucket if nearly all slots hold flows that cannot be evicted ([`Survey`]). Half-open flows
//! do not count, because a flood can create any number of them: they are evicted within their home bucket, so that a flood
//! neither marks buckets nor reads more lines than before.
//!
//! # The slot word
//! ```text
//! 63            32    31      30  16 15      8 7      0
//! |  seen: jiffies | overflow | tag  | version | state |
//! ```
//! `tag` is 15 bits of the flow's hash, `version` counts how often the slot was claimed, `seen` is when a packet last hit
//! it (to a period of [`TOUCH_PERIOD`]). A datagram flow's first answer stores a time that is a period too early: so a
//! client that asked once looks no younger than active ones. `overflow` belongs to the bucket, not to the slot: if it is
//! set in any of the bucket's words, flows with this bucket as a candidate may be in a later candidate.
//!
//! # Race rules
//! CPUs and the controller's sweeper access a slot without locks. x86-64 writes aligned words whole, and reorders neither
//! loads with loads nor stores with stores. Accesses to marks rely on that: they only keep the compiler from reordering.
//! arm64, which does reorder, would need barriers there: the crate refuses to compile for any processor but x86-64.
//! 1. A CPU claims a slot by a compare-and-swap of its whole word to `Busy` with the next version. Only the winner writes
//!    the flow, and then stores the word that publishes it. Other CPUs do not touch a `Busy` slot. To remove a connection,
//!    a CPU claims one of its slots, too, so that it reads the flow that it removes.
//! 2. The CPU that claimed a slot marks the flow dead before it writes it, and live afterwards. A reader compares the
//!    mark's version before and after it copies the flow: a flow that was dead, or was claimed in between, is a miss.
//! 3. A hit stores only `seen`, as a 32-bit write of the word's upper half, and `touched`, a byte of the mark: it can delay
//!    a compare-and-swap, never undo it. A `seen` written just after a claim only makes the new flow look fresh.
//! 4. Every change of `state` is a compare-and-swap of the whole word; a CPU that loses the race leaves the state to the
//!    winner. The winner then synchronises the mark: it reads the mark, then the word, and compare-and-swaps the mark to
//!    the word's state if both have the same version. The last CPU to do so has seen the last word. `Closed`, `Reset` and
//!    `Resumed` are only left for `Busy` or `Empty`, or when the connection is [revived](State::is_over): late packets do
//!    not change a connection that is over. For such a connection, `seen` in the first flow is when it was closed, and in
//!    the other flow when a packet last showed that it may be alive; hits do not store it.
//! 5. A CPU that moves a connection's *first* flow (the one without [`FLAG_REPLY`]) to or from a state that [is
//!    live](State::is_live) adds one to its backend's load or subtracts one; likewise for its service's load if the state
//!    [is admitted](State::is_admitted). So each connection is counted exactly once. A flow whose backend has another
//!    generation is not counted any more ([`crate::load::Load`]).
//! 6. The route and the counters in a flow are written without claiming it, by CPUs that handle its packets. The next hop
//!    and its epoch are one word ([`Hop`]), which is stored by a compare-and-swap with the old one, so that it never gets
//!    into another flow. The interface is stored before it, and the hop vouches for it.
//! 7. Two CPUs that get packets of the same new flow at once may both insert it: lookups use the first, the other is never
//!    hit and ages out half-open. If rule 9 applies, one of them backs off and uses the other's.
//! 8. A connection is in one table. Only the controller moves it to another one: it copies the connection, waits until all
//!    CPUs that may have found the old one are done, applies the changes made meanwhile to the copy, and empties the old
//!    slots.
//! 9. If a connection's source port is chosen, two CPUs may choose the same one for different clients, or different ones
//!    for the same client. So a CPU backs off if a connection is in the table that was not there when it chose. Else it
//!    publishes the flow of the answers, and then searches for another one with the same key; then it does the same for the
//!    first flow, whose mark stays dead until the search is done, so that no packet uses a flow that is removed again. A
//!    CPU that finds another flow empties its own slots, before any packet has left. Then it uses the flow that the other
//!    CPU inserted, or retries. Both may back off, which costs each client one retransmission at worst; never do both keep
//!    the port.
//! 10. Before a CPU claims a slot in a bucket that is not its flow's home, it marks every candidate before that bucket as
//!     overflowed, by a compare-and-swap of a word whose slot is not `Busy`. Every change of a word keeps the mark. So a
//!     search that does not find the flow in a bucket without a mark need not look further.

mod hop;
mod mark;
mod place;
mod ways;
mod word;

pub use self::{
    hop::{Hop, Target, next_epoch},
    mark::{Mark, period},
    place::{CANDIDATES, Candidate, SPARE, Survey, is_evictable, preferred, tag},
    ways::Ways,
    word::{State, Word},
};
use crate::{Be16, Be32};

/// Slots of a bucket.
pub const WAYS: usize = 8;

/// Binary logarithm of the jiffies between two stores of a busy flow's time: 1 to 10 seconds. The slot words stay
/// unmodified cache lines that most hits do not read. Comparisons of a slot's age allow for it.
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
    /// 0.
    pub reserved: u8,
    /// Routing domain; 0 until one router serves overlapping networks.
    pub domain: u16,
}

impl FlowKey {
    /// The key as two machine words, in memory order: what lookups compare.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 2] {
        let addresses = ((self.dst as u64) << 32) | self.src as u64;
        let rest = ((self.domain as u64) << 48)
            | ((self.reserved as u64) << 40)
            | ((self.protocol as u64) << 32)
            | ((self.dport as u64) << 16)
            | self.sport as u64;
        [addresses, rest]
    }

    /// The key with these [words](Self::words).
    #[inline(always)]
    pub const fn of_words([addresses, rest]: [u64; 2]) -> Self {
        Self {
            src: addresses as u32,
            dst: (addresses >> 32) as u32,
            sport: rest as u16,
            dport: (rest >> 16) as u16,
            protocol: (rest >> 32) as u8,
            reserved: 0,
            domain: 0,
        }
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
    /// Index in FLOWS of the other direction. If the controller ended the connection, and both sides are answered with
    /// resets, each flow is alone, and this is no slot.
    pub peer: u32,
    /// The next hop, and the epoch under which it was found.
    pub hop: Hop,
    /// The backend, and the interface.
    pub target: Target,
    /// Low 16 bits of the interface index of the device by which its packets come; 0 for any.
    pub from: u16,
    /// [`crate::backend::Backend::generation`] under which the flow was made.
    pub generation: u16,
    /// Bytes forwarded, from the Ethernet header.
    pub volume: Volume,
    /// Packets forwarded; wraps.
    pub packets: u32,
    /// What a hit needs of the slot word.
    pub mark: Mark,
}

impl Flow {
    /// Index of BACKENDS.
    #[inline(always)]
    pub const fn backend(&self) -> u32 {
        self.target.backend()
    }

    /// Bytes forwarded, from the Ethernet header; wraps at 2^48.
    #[inline(always)]
    pub const fn bytes(&self) -> u64 {
        self.volume.bytes()
    }
}

/// A flow's bytes in the upper 48 bits, so that they wrap without a carry; the lower 16 are left for the epoch of the policy
/// under which the flow was let in.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume(pub u64);

impl Volume {
    const SHIFT: u32 = 16;

    #[inline(always)]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes << Self::SHIFT)
    }

    #[inline(always)]
    pub const fn bytes(self) -> u64 {
        self.0 >> Self::SHIFT
    }

    /// The volume after so many bytes more.
    #[inline(always)]
    pub const fn plus(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes << Self::SHIFT))
    }
}

const _: () = assert!(size_of::<Flow>() == 64 && size_of::<FlowKey>() == 16 && size_of::<Bucket>() == 64);

/// The flow answers its connection's first packet.
pub const FLAG_REPLY: u8 = 1;
/// The flow goes from a backend or guest to the outside: its source is translated, its destination is not the router's.
/// Of a connection that came from outside that is the answering one, of a guest's own the first one.
pub const FLAG_OUTWARD: u8 = 2;

/// One cache line of slot words.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    pub words: [u64; WAYS],
}

crate::pod!(FlowKey, Flow, Volume, Bucket);

/// Offset of [`Flow::mark`], in bytes, for atomic changes.
pub const MARK_OFFSET: usize = core::mem::offset_of!(Flow, mark);
const _: () = assert!(MARK_OFFSET.is_multiple_of(4));
