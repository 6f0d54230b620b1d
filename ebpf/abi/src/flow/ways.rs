//! Sets of a bucket's ways.

use super::{WAYS, Word};

/// The set of ways whose slots have a tag: bit `w` for way `w`. One more bit says whether the bucket has overflowed.
///
/// Built and taken apart without branches: a flow's way is random, so a branch on it would be mispredicted, and the
/// verifier would follow each way separately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ways(u32);

impl Ways {
    const OVERFLOW: u32 = 1 << WAYS;

    /// Adds `way` if the word has `tag`, and the bucket's mark if the word has it.
    #[inline(always)]
    pub const fn with_match(self, way: usize, word: Word, tag: u16) -> Self {
        let difference = (word.tag() ^ tag) as u64;
        let mark = (word.0 >> (31 - WAYS)) as u32 & Self::OVERFLOW;
        Self(self.0 | mark | ((difference.wrapping_sub(1) >> 63) as u32) << way)
    }

    /// True if there are no ways left.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 & (Self::OVERFLOW - 1) == 0
    }

    /// True if one of the words has the bucket's mark (rule 10).
    #[inline(always)]
    pub const fn has_overflowed(self) -> bool {
        self.0 & Self::OVERFLOW != 0
    }

    /// The lowest way of a set that is not empty, and the others.
    #[inline(always)]
    pub const fn pop(self) -> (usize, Self) {
        // A de Bruijn sequence of 8 bits: its products with different powers of two have different upper bits.
        const SEQUENCE: u32 = 0x17;
        const WAY_BY_PRODUCT: u32 = 0x5637_4210;
        let lowest = self.0 & self.0.wrapping_neg();
        let product = ((lowest * SEQUENCE) >> 5) & 7;
        let way = (WAY_BY_PRODUCT >> (product * 4)) & 7;
        (way as usize, Self(self.0 & self.0.wrapping_sub(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::State;

    #[test]
    fn ways_come_back_lowest_first() {
        let mut all = Ways::default();
        for way in 0..WAYS {
            let word = Word::new(State::Established, 9, 0x2bcd, 7);
            assert_eq!(Ways::default().with_match(way, word, 0x2bcd).pop(), (way, Ways::default()));
            let marked = Ways::default().with_match(way, word.overflowed(), 0x2bcd);
            assert!(marked.has_overflowed() && !all.has_overflowed());
            let (found, others) = marked.pop();
            assert!(found == way && others.is_empty() && others.has_overflowed());
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
        for tag in [0, 1, 0x1233, 0x1235, 0x3412, 0x7fff] {
            assert!(Ways::default().with_match(3, word, tag).is_empty());
        }
    }
}
