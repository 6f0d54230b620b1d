//! Incremental Internet checksums (RFC 1071, RFC 1624 equation 3).
//!
//! A change is the one's-complement sum of `~old + new` over the 16-bit words that change. Sums are of
//! native-order words, which is correct for any byte order (RFC 1071, section 2 B).
//!
//! ```
//! use vipgate_abi::checksum::{delta16, delta32, fold, update};
//!
//! // A destination address and a port are rewritten: only what changes is summed.
//! let (old, new) = ([0x0a01_000a_u32, 80], [0x0a02_000b_u32, 8080]);
//! let checksum = |words: [u32; 2]| !fold(words[0] as u64 + words[1] as u64);
//! let delta = delta32(old[0], new[0]) + delta16(old[1] as u16, new[1] as u16);
//! assert_eq!(update(checksum(old), delta), checksum(new));
//! ```

/// Folds a sum to 16 bits.
#[inline(always)]
pub const fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The change of the sum when a 16-bit word changes.
#[inline(always)]
pub const fn delta16(old: u16, new: u16) -> u64 {
    !old as u64 + new as u64
}

/// The change of the sum when a 32-bit word changes.
#[inline(always)]
pub const fn delta32(old: u32, new: u32) -> u64 {
    !old as u64 + new as u64
}

/// The checksum field after a change: HC' = ~(~HC + sum).
#[inline(always)]
pub const fn update(checksum: u16, delta: u64) -> u16 {
    !fold(!checksum as u64 + delta)
}

/// The same for UDP, where 0 means "no checksum": 0 stays, and a result of 0 is sent as 0xffff (RFC 768).
#[inline(always)]
pub const fn update_udp(checksum: u16, delta: u64) -> u16 {
    if checksum == 0 {
        return 0;
    }
    match update(checksum, delta) {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    /// RFC 1071, computed in full over native-order words.
    fn full(words: &[u16]) -> u16 {
        let mut sum: u32 = words.iter().copied().map(u32::from).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    /// 0 and 0xffff are one value in one's complement arithmetic; a header that is not all zero never sums to the first.
    fn same(one: u16, other: u16) -> bool {
        one == other || (one ^ other) == 0xffff && (one == 0 || other == 0)
    }

    #[test]
    fn a_fold_keeps_sums_whose_every_carry_carries_on() {
        const WORDS: [u16; 5] = [0, 1, 0x7fff, 0xfffe, 0xffff];
        for number in 0..WORDS.len().pow(4) {
            let words = [1, 5, 25, 125].map(|place| WORDS[number / place % WORDS.len()]);
            let sum = words.iter().rev().fold(0, |sum, word| sum << 16 | u64::from(*word));
            assert_eq!(fold(sum), !full(&words), "{sum:x}");
        }
    }

    proptest! {
        #[test]
        fn an_update_gives_what_a_full_sum_gives(
            mut words in prop::collection::vec(any::<u16>(), 2..40),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u16>()), 1..8),
        ) {
            let before = full(&words);
            let mut delta = 0;
            for (index, new) in changes {
                let index = index.index(words.len());
                let word = &mut words[index];
                delta += delta16(*word, new);
                *word = new;
            }
            prop_assert!(same(update(before, delta), full(&words)), "{:04x} {:04x}", update(before, delta), full(&words));
        }

        #[test]
        fn a_32_bit_change_is_that_of_its_two_words(old: u32, new: u32, checksum: u16) {
            let words = delta16(old as u16, new as u16) + delta16((old >> 16) as u16, (new >> 16) as u16);
            prop_assert!(same(update(checksum, delta32(old, new)), update(checksum, words)));
        }

        #[test]
        fn a_change_and_its_reverse_leave_the_checksum(old: u32, new: u32, checksum: u16) {
            let there = update(checksum, delta32(old, new));
            prop_assert!(same(update(there, delta32(new, old)), checksum));
        }

        #[test]
        fn a_udp_checksum_never_becomes_none_and_none_stays(checksum: u16, delta in 0..u64::from(u32::MAX) * 4) {
            prop_assert_eq!(update_udp(checksum, delta) == 0, checksum == 0);
        }

        #[test]
        fn a_udp_checksum_that_comes_to_zero_is_sent_as_all_ones(checksum in 1..=u16::MAX) {
            prop_assert_eq!(update_udp(checksum, u64::from(checksum)), 0xffff);
        }

        #[test]
        fn a_fold_keeps_the_sum(parts: Vec<u16>) {
            prop_assume!(parts.len() < 1000);
            let sum = parts.iter().copied().map(u64::from).sum();
            prop_assert_eq!(fold(sum), !full(&parts));
        }
    }
}
