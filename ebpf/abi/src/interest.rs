//! Which addresses the router's services are about: a set of bits that tells most other traffic apart before the flow
//! table is looked at.
//!
//! A packet concerns vipgate when it goes *to* an address that has a service or by which guests leave, or comes *from* one
//! that answers for a service or gets another source on its way *out*, or goes to one of these last. Each such address sets a
//! bit, chosen by a hash; a packet whose bits are all clear is not ours. A bit that another address set costs such a packet a look into the
//! tables, no more.
//!
//! A fourth kind of bit is about who must not send: the router's own addresses, which no packet has that comes in. It is asked
//! for when a flow opens, not for each packet.
//!
//! The controller sets a bit before the entry that needs it, and clears it after the last one that did; those to and from
//! addresses only when connections that ended with that entry need no answer any more.

use core::ops::Range;

use crate::Be32;

/// Binary logarithm of the number of bits for each direction.
const BITS_LOG2: u32 = 19;
/// Number of bits for each direction.
pub const BITS: u32 = 1 << BITS_LOG2;
/// Kinds of bits.
const KINDS: usize = 4;
/// Number of 64-bit words: the map's elements.
pub const WORDS: usize = KINDS << (BITS_LOG2 - 6);
/// The words that have the bits of the router's own addresses.
pub const OWN_WORDS: Range<u32> = (WORDS - WORDS / KINDS) as u32..WORDS as u32;

/// One bit of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bit(u32);

impl Bit {
    /// The bit of packets to an address.
    #[inline(always)]
    pub const fn to(addr: Be32) -> Self {
        Self(hash(addr))
    }

    /// The bit of packets from an address.
    #[inline(always)]
    pub const fn from(addr: Be32) -> Self {
        Self(hash(addr) | 1 << BITS_LOG2)
    }

    /// The bit of packets from an address whose source is another one when they leave by some device; [`Self::from`] is set,
    /// too.
    #[inline(always)]
    pub const fn out(addr: Be32) -> Self {
        Self(hash(addr) | 2 << BITS_LOG2)
    }

    /// The bit of an address of the router's own.
    #[inline(always)]
    pub const fn own(addr: Be32) -> Self {
        Self(hash(addr) | 3 << BITS_LOG2)
    }

    /// The bits of packets from whatever address, and of those that get another source: what a network needs that has more
    /// addresses than there are bits.
    pub fn from_and_out_of_all() -> impl Iterator<Item = Self> {
        (BITS..3 * BITS).map(Self)
    }

    /// The bit's number among all of them, below `4 *` [`BITS`].
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self.0
    }

    /// True for a bit of [`Self::out`].
    pub const fn is_out(self) -> bool {
        self.0 >> BITS_LOG2 == 2
    }

    /// The word that the bit is in, below [`WORDS`].
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0 >> 6
    }

    /// The bit within its word.
    #[inline(always)]
    pub const fn mask(self) -> u64 {
        1 << (self.0 & 63)
    }
}

/// Multiplicative hashing (Knuth, The Art of Computer Programming, volume 3, section 6.4).
#[inline(always)]
const fn hash(addr: Be32) -> u32 {
    addr.wrapping_mul(0x9e37_79b1) >> (32 - BITS_LOG2)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn every_bit_is_in_a_word_and_directions_have_bits_of_their_own() {
        for addr in [0, 1, 0x0a00_0001, 0x6400_010a, u32::MAX] {
            let bits = [Bit::to(addr), Bit::from(addr), Bit::out(addr), Bit::own(addr)];
            for (part, bit) in bits.iter().enumerate() {
                assert_eq!(bit.word() as usize / (WORDS / KINDS), part);
                assert_eq!(bit.mask(), bits[0].mask());
                assert_eq!((bit.word(), bit.mask()), (bit.index() / 64, 1 << (bit.index() % 64)));
                assert_eq!(OWN_WORDS.contains(&bit.word()), *bit == Bit::own(addr));
            }
        }
    }

    #[test]
    fn a_network_of_addresses_spreads_over_the_bits() {
        let bits: std::collections::BTreeSet<_> =
            (0..65_536u32).map(|host| Bit::to((0x0a01_0000 | host).to_be())).collect();
        assert!(bits.len() > 55_000, "{}", bits.len());
    }
}
