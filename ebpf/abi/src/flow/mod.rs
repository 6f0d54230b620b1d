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
//! An insert goes on to the next bucket from one whose slots are nearly all taken by flows that stay ([`Survey`]). What a
//! flood makes any number of does not count: half-open flows give way within their home, so that a flood neither marks
//! buckets nor reads more lines than before.
//!
//! # The slot word
//! ```text
//! 63            32    31      30  16 15      8 7      0
//! |  seen: jiffies | overflow | tag  | version | state |
//! ```
//! `tag` is 15 bits of the flow's hash, `version` counts how often the slot was claimed, `seen` is when a packet last
//! hit it (to a period of [`TOUCH_PERIOD`]). A datagram flow's first answer stores it a period too early: so whoever asked once
//! looks no younger than who talks on. `overflow` is the bucket's, not the slot's: in whichever of its words it is set, flows
//! that had a place in this bucket, too, may lie in one after it.
//!
//! # Race rules
//! CPUs and the controller's sweeper meet in a slot without locks. x86-64 writes aligned words whole, and no load overtakes
//! another load there, and no store another store. What reads and writes marks relies on that: it keeps only the compiler from
//! reordering. arm64, which does reorder, would need barriers there: the crate refuses to compile for it, or for any other.
//! 1. Who takes a slot compare-and-swaps its whole word to `Busy` with the next version; only the winner writes the
//!    flow, and then stores the word that publishes it. Nobody touches a `Busy` slot. Who removes a connection
//!    claims a slot of it, too, so that what it reads there is the flow that it removes.
//! 2. Who claimed a slot marks its flow dead before it writes it, and live after. Who reads a flow compares the mark's
//!    version before and after copying it: a flow that was dead, or that was claimed in between, reads as a miss.
//! 3. A hit stores only `seen`, as a 32-bit write of the word's upper half, and `touched`, a byte of the mark: it can delay
//!    a compare-and-swap, never undo it. A `seen` written just after a claim only makes the new flow look fresh.
//! 4. Every change of `state` is a compare-and-swap of the whole word; who loses it leaves the state to the winner. The
//!    winner then brings the mark to the word: it reads the mark, then the word, and compare-and-swaps the mark to the
//!    word's state while both are of one version. Whoever comes last has seen the last word.
//!    `Closed`, `Reset` and `Resumed` are left for `Busy`, `Empty` and by what [revives](State::is_over) a connection only: what comes
//!    late for one that is over leaves it so. Of such a connection `seen` says in the first flow when it was closed, in the
//!    other one when a packet came last that may tell that it lives: hits do not store it.
//! 5. Who moves a connection's *first* flow (the one without [`FLAG_REPLY`]) to or from a state that [is live](State::is_live)
//!    adds one to its backend's load or takes one off; and to its service's load, where the state
//!    [is admitted](State::is_admitted): so each is counted exactly once. A flow whose backend has another generation is counted
//!    by nobody any more ([`crate::load::Load`]).
//! 6. The way out and the counters in a flow are written without claiming it, by CPUs that handle its packets. The next hop
//!    and the epoch that vouches for it are one word ([`Hop`]), which is compared and swapped for the one that was old, so that
//!    it never comes to another flow; the port is stored before it, and told by it.
//! 7. Two CPUs that meet the same new flow at once may both insert it: lookups use the first, the other is never hit
//!    and ages out as an embryo. Where rule 9 holds, one of them gives up and uses the other's.
//! 8. A connection is in one table. Only the controller moves it to another: it copies it, waits until nobody who looked
//!    before that is still at work, brings the copy to what was changed meanwhile, and empties the old slots.
//! 9. Where a connection's source port is chosen, two CPUs may choose the same one for different clients, or different ones for
//!    the same client. So a new connection gives up when one is there already that was not when it chose; else it publishes the
//!    flow of its answers, and then looks for another one with the same key; and then the same of its first flow, whose mark
//!    stays dead until it is known to stay, so that no packet uses one that goes again: whoever finds one empties its own
//!    slots again, before any packet has left. Then it uses the flow that the other CPU has inserted, or begins anew. Both may
//!    give up, never do both stay; who loses so several times in a row costs its client a packet.
//! 10. Who takes a slot of a bucket that is not its flow's home marks every bucket before it as overflowed, before it claims
//!     the slot: by a compare-and-swap of a word whose slot is not `Busy`. Whoever changes a word keeps the mark that is in it.
//!     So who does not find a flow in a bucket without a mark need not look further.

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
    /// Index in FLOWS of the other direction. Of a connection that the controller ended, and of which both sides are told, each flow
    /// is alone: this names no slot.
    pub peer: u32,
    /// The next hop, and under which epoch it was found.
    pub hop: Hop,
    /// The backend, and the way out.
    pub target: Target,
    /// Low 16 bits of the interface index of the device by which its packets come; 0: by any.
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

/// Offset of [`Flow::mark`], in bytes, for who changes it atomically.
pub const MARK_OFFSET: usize = core::mem::offset_of!(Flow, mark);
const _: () = assert!(MARK_OFFSET.is_multiple_of(4));
