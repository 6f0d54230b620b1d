//! Hashes of the packet path: multiply-xorshift mixing.

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
/// same on every router, and chooses the element of the selection table.
#[inline(always)]
pub const fn flow(key: &FlowKey, seed: u64) -> u64 {
    words(key.words(), seed)
}

/// [`flow`] for a key's words: one multiplication to bring the first word's bits together with the second's, and the
/// finaliser over both.
#[inline(always)]
pub const fn words(key: [u64; 2], seed: u64) -> u64 {
    let first = (key[0] ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mix(first ^ (first >> 32) ^ key[1])
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

#[cfg(test)]
mod tests {
    extern crate std;

    use proptest::prelude::*;
    use std::vec;

    use super::*;

    fn key(src: u32, dst: u32, ports: u32, protocol: u8) -> FlowKey {
        FlowKey { src, dst, sport: ports as u16, dport: (ports >> 16) as u16, protocol, reserved: 0, domain: 0 }
    }

    proptest! {
        #[test]
        fn an_index_is_within_its_length(hash: u64, len in 1..=u32::MAX) {
            prop_assert!(to_index(hash, len) < len);
        }

        #[test]
        fn every_field_of_a_key_counts(src: u32, dst: u32, ports: u32, seed: u64, bit in 0..32u32) {
            let whole = flow(&key(src, dst, ports, 6), seed);
            prop_assert_ne!(whole, flow(&key(src ^ 1 << bit, dst, ports, 6), seed));
            prop_assert_ne!(whole, flow(&key(src, dst ^ 1 << bit, ports, 6), seed));
            prop_assert_ne!(whole, flow(&key(src, dst, ports ^ 1 << bit, 6), seed));
            prop_assert_ne!(whole, flow(&key(src, dst, ports, 17), seed));
        }
    }

    #[test]
    fn a_clients_consecutive_ports_spread_evenly() {
        let mut buckets = vec![0; 64];
        for port in 0..64_000 {
            buckets[(flow(&key(0x0a00_0001, 0x0a00_0002, port, 6), 7) & 63) as usize] += 1;
            buckets[to_index(flow(&key(0x0a00_0001, 0x0a00_0002, port, 6), 0), 64) as usize] += 1;
        }
        // 2,000 each on average, with a deviation of 45: six of them.
        assert!(buckets.iter().all(|count| (1730..=2270).contains(count)), "{buckets:?}");
    }

    #[test]
    fn a_seed_moves_the_flows() {
        let moved =
            (0..1000).filter(|&port| flow(&key(1, 2, port, 6), 1) & 1023 != flow(&key(1, 2, port, 6), 2) & 1023);
        assert!(moved.count() > 980);
    }
}
