//! A sample of the connections that services with a limit have of protocols without a handshake: of a full one's, the longest
//! idle gives way to a new client (as Redis evicts by sampling, "approximated LRU").
//!
//! Anybody can forge a datagram, and whoever answers it makes it a connection that lasts until it has been idle for long enough.
//! Were a full service closed until then, a few thousand forged datagrams a minute would close it to everyone.
//!
//! An element of the SAMPLE map is the hash of such a connection's answers, which finds it in a table of any size; 0: none. A
//! service's places are as many as its limit, in groups, of which a connection's hash names one, so that a look at a group is a
//! look at connections by chance. Services share the map: a place that another one has taken is a connection less to choose from.

use crate::hash;

/// Elements of SAMPLE, a power of two.
pub const PLACES: u32 = 1 << 16;
/// Connections of which one gives way: a cache line.
pub const GROUP: u32 = 8;

const GROUPS: u32 = PLACES / GROUP;

/// The first place of the group that a hash names among those of a service with this limit.
#[inline(always)]
pub const fn group(service: u32, most: u32, hash: u64) -> u32 {
    let groups = most / GROUP + 1;
    let groups = if groups < GROUPS { groups } else { GROUPS };
    let first = hash::source(service) as u32;
    first.wrapping_add(hash::to_index(hash, groups)) % GROUPS * GROUP
}

/// The place that a connection takes while nobody gives way to it.
#[inline(always)]
pub const fn place(service: u32, most: u32, hash: u64) -> u32 {
    group(service, most, hash) + hash as u32 % GROUP
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_services_connections_are_spread_over_as_many_places_as_it_may_have() {
        for (most, expected) in [(1, 8), (7, 8), (8, 16), (5000, 5008), (PLACES, PLACES), (u32::MAX, PLACES)] {
            let places: HashSet<u32> = (0..40 * expected).map(|number| place(3, most, hash::source(number))).collect();
            assert!(places.iter().all(|place| *place < PLACES));
            assert_eq!(places.len(), expected as usize, "{most}");
        }
    }

    #[test]
    fn small_services_have_places_of_their_own() {
        let groups: HashSet<u32> = (0..100).map(|service| group(service, 5, 0)).collect();
        assert!(groups.len() >= 98, "{}", groups.len());
    }
}
