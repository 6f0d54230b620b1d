//! Hashes of the packet path: multiply-xorshift mixing, two rounds for a 5-tuple.

use crate::flow::FlowKey;

/// The finaliser of MurmurHash3 (Appleby, public domain constants): every input bit changes every output bit.
#[inline(always)]
const fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// Hash of a flow under a seed. With the map's secret seed it places the flow in the table; with seed 0 it is the
/// same on every router, and chooses the ring element.
#[inline(always)]
pub const fn flow(key: &FlowKey, seed: u64) -> u64 {
    words(key.words(), seed)
}

/// [`flow`] for a key's words.
#[inline(always)]
pub const fn words(key: [u64; 2], seed: u64) -> u64 {
    mix(mix(key[0] ^ seed).wrapping_add(key[1]))
}

/// Hash of a source address, the same on every router.
#[inline(always)]
pub const fn source(addr: crate::Be32) -> u64 {
    mix(addr as u64 + 1)
}

/// Maps a hash evenly to `0..len` without a division (Lemire, "Fast random integer generation in an interval", 2019).
#[inline(always)]
pub const fn to_index(hash: u64, len: u32) -> u32 {
    (((hash >> 32) * len as u64) >> 32) as u32
}
