//! The addresses that the router's services use: a bit set by which most other traffic is recognised without a lookup in
//! the flow table.
//!
//! A packet concerns vipgate if it goes *to* an address that has a service or is a source for guests, or comes *from* one
//! that answers for a service or is translated on its way *out*, or goes to one of the latter. Each such address sets a
//! bit, chosen by a hash. A packet whose bits are all clear is not ours. A hash collision costs a packet a lookup in the
//! tables, no more.
//!
//! A fourth kind of bit is for the router's own addresses, which no arriving packet may have as its source. It is checked
//! when a flow opens, and for packets that go to the stack.
//!
//! An address's four bits are adjacent, so that one load reads all of them.
//!
//! The controller sets a bit before it writes the entry that needs it, and clears it after the last such entry is gone. It
//! clears `to` and `from` bits only when the connections that ended with the entry need no reset any more.

use crate::Be32;

/// Binary logarithm of the number of bits of each kind.
const BITS_LOG2: u32 = 19;
/// Number of bits of each kind.
pub const BITS: u32 = 1 << BITS_LOG2;
/// Kinds of bits.
const KINDS: u32 = 4;
/// Number of 64-bit words: the map's elements.
pub const WORDS: usize = (BITS * KINDS) as usize / 64;

/// The kind of an address's bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    To = 0,
    From = 1,
    Out = 2,
    Own = 3,
}

/// One bit of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bit(u32);

impl Bit {
    /// The bits of [`Self::own`] in each word.
    pub const OWN: u64 = 0x8888_8888_8888_8888;

    #[inline(always)]
    const fn new(addr: Be32, kind: Kind) -> Self {
        Self(hash(addr) * KINDS + kind as u32)
    }

    /// The bit of packets to an address.
    #[inline(always)]
    pub const fn to(addr: Be32) -> Self {
        Self::new(addr, Kind::To)
    }

    /// The bit of packets from an address.
    #[inline(always)]
    pub const fn from(addr: Be32) -> Self {
        Self::new(addr, Kind::From)
    }

    /// The bit of packets from an address that is translated at some device. [`Self::from`] is set, too.
    #[inline(always)]
    pub const fn out(addr: Be32) -> Self {
        Self::new(addr, Kind::Out)
    }

    /// The bit of one of the router's own addresses.
    #[inline(always)]
    pub const fn own(addr: Be32) -> Self {
        Self::new(addr, Kind::Own)
    }

    /// The `from` and `out` bits of all addresses: for a network that has more addresses than there are bits.
    pub fn from_and_out_of_all() -> impl Iterator<Item = Self> {
        (0..BITS).flat_map(|hash| [Self(hash * KINDS + Kind::From as u32), Self(hash * KINDS + Kind::Out as u32)])
    }

    /// The bit's number among all of them, below `4 *` [`BITS`].
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self.0
    }

    /// True for a bit of [`Self::out`].
    pub const fn is_out(self) -> bool {
        self.0 % KINDS == Kind::Out as u32
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

/// The bits of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits(u64);

impl Bits {
    pub const NONE: Self = Self(0);

    /// The word that they are in.
    #[inline(always)]
    pub const fn word_of(addr: Be32) -> u32 {
        Bit::to(addr).word()
    }

    /// Those of an address, given that word.
    #[inline(always)]
    pub const fn of(addr: Be32, word: u64) -> Self {
        Self(word >> (Bit::to(addr).0 & 63))
    }

    #[inline(always)]
    const fn has(self, kinds: u64) -> bool {
        self.0 & kinds != 0
    }

    /// False if no packet to the address concerns us.
    #[inline(always)]
    pub const fn may_be_to(self) -> bool {
        self.has(1 << Kind::To as u64 | 1 << Kind::Out as u64)
    }

    /// False if no packet from the address concerns us.
    #[inline(always)]
    pub const fn may_be_from(self) -> bool {
        self.has(1 << Kind::From as u64)
    }

    /// False if packets from the address are translated at no device.
    #[inline(always)]
    pub const fn may_be_translated(self) -> bool {
        self.has(1 << Kind::Out as u64)
    }

    /// False if the address has no service and is no guest's source.
    #[inline(always)]
    pub const fn may_be_vip(self) -> bool {
        self.has(1 << Kind::To as u64)
    }

    /// False if it is neither one of the router's addresses nor a VIP.
    #[inline(always)]
    pub const fn may_be_own(self) -> bool {
        self.has(1 << Kind::To as u64 | 1 << Kind::Own as u64)
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
    fn an_addresses_bits_are_found_by_one_look() {
        for addr in [0, 1, 0x0a00_0001, 0x6400_010a, u32::MAX] {
            let bits = [Bit::to(addr), Bit::from(addr), Bit::out(addr), Bit::own(addr)];
            for bit in bits {
                assert_eq!(bit.word(), Bits::word_of(addr));
                assert!((bit.word() as usize) < WORDS);
                assert_eq!((bit.word(), bit.mask()), (bit.index() / 64, 1 << (bit.index() % 64)));
                assert_eq!(Bit::OWN & bit.mask() != 0, bit == Bit::own(addr));
            }
            let seen = bits.map(|bit| Bits::of(addr, bit.mask()));
            assert_eq!(seen.map(Bits::may_be_to), [true, false, true, false]);
            assert_eq!(seen.map(Bits::may_be_from), [false, true, false, false]);
            assert_eq!(seen.map(Bits::may_be_translated), [false, false, true, false]);
            assert_eq!(seen.map(Bits::may_be_vip), [true, false, false, false]);
            assert_eq!(seen.map(Bits::may_be_own), [true, false, false, true]);
        }
    }

    #[test]
    fn a_network_of_addresses_spreads_over_the_bits() {
        let bits: std::collections::BTreeSet<_> =
            (0..65_536u32).map(|host| Bit::to((0x0a01_0000 | host).to_be())).collect();
        assert!(bits.len() > 55_000, "{}", bits.len());
    }
}
