//! The candidate buckets of a flow, and the slot for a new one.

use super::{WAYS, Word};

/// Number of candidate buckets of a hash. The table shows how many new connections, which need two slots, find no room if
/// so many slots hold flows that cannot be evicted (simulated, after each flow has been replaced several times):
///
/// | buckets | 50% | 60% | 70% | 80% | 90% |
/// | --- | --- | --- | --- | --- | --- |
/// | 1 | 7% | 16% | 29% | 49% | 76% |
/// | 2 | | 0.08% | 1.1% | 9% | 41% |
/// | 3 | | | 0.02% | 0.8% | 18% |
/// | 4 | | | | 0.04% | 7% |
pub const CANDIDATES: u32 = 4;

/// A bucket with fewer spare slots (empty, half-open or closed ones) is crowded: a flow goes on to its next candidate.
/// Otherwise chance would fill some buckets completely and leave others half empty.
pub const SPARE: u64 = 2;

/// One of a hash's candidate buckets, in the order of the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    bits: u64,
    /// Its number.
    pub bucket: u32,
}

impl Candidate {
    /// The first candidate: the flow's home.
    #[inline(always)]
    pub const fn home(hash: u64, bucket_mask: u32) -> Self {
        Self { bits: hash, bucket: hash as u32 & bucket_mask }
    }

    /// The next candidate.
    #[inline(always)]
    pub const fn next(self, bucket_mask: u32) -> Self {
        // 2^64 over the golden ratio: the product's upper half depends on all bits of the lower one.
        let bits = self.bits.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { bits, bucket: (bits >> 32) as u32 & bucket_mask }
    }
}

/// The slot that a flow with this hash prefers, in its home.
#[inline(always)]
pub const fn preferred(hash: u64, bucket_mask: u32) -> u32 {
    (hash as u32 & bucket_mask) * WAYS as u32 + (hash >> 45) as u32 % WAYS as u32
}

/// The tag of a flow's hash: 15 bits that neither its home nor its preferred way use.
#[inline(always)]
pub const fn tag(hash: u64) -> u16 {
    (hash >> 49) as u16
}

/// A summary of a bucket for a CPU that needs a slot: the way that eviction prefers, its rank, and whether the bucket is
/// crowded. One number, so that the verifier has only one to follow; of two buckets, the one with the greater number is better.
/// ```text
/// 63     60 38    6     3     0
/// | spare |  rank  |  0  | way |
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey(pub u64);

impl Survey {
    const RANK: u32 = 3;
    const COUNT: u32 = 60;
    const BEST: u64 = (1 << Self::COUNT) - 1;

    /// Adds a way to the summary.
    #[inline(always)]
    pub const fn with(self, way: usize, word: Word, now: u32) -> Self {
        let rank = word.eviction_rank(now);
        let (candidate, best) = (rank << Self::RANK | way as u64, self.0 & Self::BEST);
        let count = (self.0 & !Self::BEST) + ((is_spare(rank) as u64) << Self::COUNT);
        Self(count | if candidate > best { candidate } else { best })
    }

    /// True for a bucket whose last slots are left to other flows.
    #[inline(always)]
    pub const fn is_crowded(self) -> bool {
        self.0 >> Self::COUNT < SPARE
    }

    /// True if this crowded bucket is better than an `earlier` crowded one.
    #[inline(always)]
    pub const fn is_better(self, earlier: Self) -> bool {
        // All empty slots are equal, but a flow in an earlier bucket is found sooner.
        !is_empty(earlier.rank()) && self.rank() > earlier.rank()
    }

    /// The rank of the way that eviction prefers.
    #[inline(always)]
    pub const fn rank(self) -> u64 {
        (self.0 & Self::BEST) >> Self::RANK
    }

    /// The way that eviction prefers.
    #[inline(always)]
    pub const fn way(self) -> usize {
        self.0 as usize % WAYS
    }
}

const _: () = assert!(1 << Survey::RANK == WAYS);

/// True for the rank of a slot that a new flow may take.
#[inline(always)]
pub const fn is_evictable(rank: u64) -> bool {
    rank >> Word::CLASS != 0
}

/// True for the rank of a slot that is empty or holds a half-open or closed flow, of which a flood can create any number.
#[inline(always)]
const fn is_spare(rank: u64) -> bool {
    rank >> Word::CLASS > 1
}

#[inline(always)]
const fn is_empty(rank: u64) -> bool {
    rank >> Word::CLASS == 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::State;

    #[test]
    fn a_preferred_slot_is_in_the_hashes_home() {
        for hash in [0, 0x5eed_0000_0000_0003, u64::MAX, 1 << 45, 7 << 45] {
            let slot = preferred(hash, 0x3ff);
            assert_eq!(slot / WAYS as u32, Candidate::home(hash, 0x3ff).bucket);
        }
        assert_eq!(preferred(5 << 45 | 2, 3), 2 * 8 + 5);
    }

    #[test]
    fn the_buckets_of_one_home_go_on_to_all_buckets_alike() {
        const MASK: u32 = 63;
        for depth in 1..CANDIDATES {
            let mut met = [0; MASK as usize + 1];
            for number in 0..64_000 {
                // All of one home, so that only the other bits tell where they go on to.
                let hash = crate::hash::source(number) & !u64::from(MASK) | 5;
                let mut at = Candidate::home(hash, MASK);
                (0..depth).for_each(|_| at = at.next(MASK));
                met[at.bucket as usize] += 1;
            }
            // 1,000 each on average, with a deviation of 31: six of them.
            assert!(met.iter().all(|count| (810..=1190).contains(count)), "{depth}: {met:?}");
        }
    }

    fn survey(states: [State; WAYS]) -> Survey {
        let words = states.into_iter().enumerate();
        words.fold(Survey::default(), |sum, (way, state)| sum.with(way, Word::new(state, 0, 0, 90 + way as u32), 100))
    }

    #[test]
    fn a_bucket_is_crowded_when_all_but_one_of_its_flows_stay() {
        use State::{Busy, Closed, Closing, Datagrams, Empty, Established, Opening};
        let mut states = [Established, Closing, Datagrams, Busy, Established, Established, Opening, Closed];
        assert!(!survey(states).is_crowded());
        assert_eq!(survey(states).way(), 7);
        states[7] = Established;
        assert!(survey(states).is_crowded());
        assert_eq!(survey(states).way(), 6);
        assert!(is_evictable(survey(states).rank()));
        assert!(!survey([Empty; WAYS]).is_crowded());
        let full = survey([Established; WAYS]);
        assert!(full.is_crowded() && !is_evictable(full.rank()));
    }

    #[test]
    fn of_crowded_buckets_the_first_with_an_empty_slot_is_taken_else_the_one_with_the_worthiest_victim() {
        use State::{Datagrams, Empty, Established, Opening};
        let of = |state| {
            survey([Established, Established, state, Established, Established, Established, Established, Established])
        };
        assert!(of(Empty).is_better(of(Opening)) && !of(Opening).is_better(of(Empty)));
        assert!(!of(Empty).is_better(of(Empty)));
        assert!(of(Opening).is_better(of(Datagrams)) && of(Datagrams).is_better(of(Established)));
        assert!(!of(Established).is_better(of(Established)));
    }
}
