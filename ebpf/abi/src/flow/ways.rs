//! Sets of a bucket's ways.

use super::Word;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{State, WAYS};

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
}
