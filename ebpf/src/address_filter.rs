//! Which addresses the router's services are about (`vipgate_abi::address_filter`).

use vipgate_abi::{Be32, address_filter::Bits};

use crate::maps::INTEREST;

/// The bits of an address.
#[inline(always)]
pub fn of(addr: Be32) -> Bits {
    INTEREST.get(Bits::word_of(addr)).map_or(Bits::NONE, |word| Bits::of(addr, *word))
}
