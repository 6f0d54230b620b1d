//! Ranges of ports as the few prefixes that cover them. Pure.

/// The fewest prefixes that cover the ports from `first` to `last` and no others, ascending: each by its lowest port and
/// its length in bits. At most 30.
pub(super) fn cover(first: u16, last: u16) -> Vec<(u16, u32)> {
    let mut prefixes = Vec::new();
    let (mut next, end) = (u32::from(first), u32::from(last) + 1);
    while next < end {
        // The largest block that starts here, and the largest that still fits.
        let aligned = next.trailing_zeros().min(u16::BITS);
        let fitting = (end - next).ilog2();
        let free = aligned.min(fitting);
        prefixes.push((next as u16, u16::BITS - free));
        next += 1 << free;
    }
    prefixes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::cover;

    #[test]
    fn a_range_is_a_handful_of_prefixes() {
        assert_eq!(cover(80, 80), [(80, 16)]);
        assert_eq!(cover(8000, 8015), [(8000, 12)]);
        assert_eq!(cover(0, u16::MAX), [(0, 0)]);
        assert_eq!(cover(1, 6), [(1, 16), (2, 15), (4, 15), (6, 16)]);
        assert_eq!(cover(1, u16::MAX).len(), 16);
        assert_eq!(cover(1, u16::MAX - 1).len(), 30, "the most");
    }

    proptest! {
        #[test]
        fn prefixes_cover_their_range_exactly(one: u16, other: u16) {
            let (first, last) = (one.min(other), one.max(other));
            let prefixes = cover(first, last);
            prop_assert!(prefixes.len() <= 30);
            let mut next = u32::from(first);
            for (port, bits) in prefixes {
                let size = 1 << (16 - bits);
                prop_assert_eq!(u32::from(port), next, "a gap or an overlap");
                prop_assert_eq!(next % size, 0, "no prefix");
                next += size;
            }
            prop_assert_eq!(next, u32::from(last) + 1);
        }
    }
}
