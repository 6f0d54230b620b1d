//! A sample of the connections without a handshake of services with a limit: in a full service, the one that has been idle
//! for longest is evicted for a new client (sampling as in Redis, "approximated LRU").
//!
//! Anybody can forge a datagram, and an answer to it makes a connection that lasts until it has been idle for long enough.
//! If a full service were closed until then, a few thousand forged datagrams a minute would close it to everyone.
//!
//! An element of the SAMPLE map (a place) is the hash of such a connection's answers, which finds it in a table of any
//! size; 0 if it is empty. A service has groups of places, over which its connections are spread by their hashes: so a
//! group is a random sample. A service with a higher limit has more groups, twice as many with each [class]; the groups of
//! a lower class are a subset of those of a higher one. Services share the map: a place that another service has taken is
//! missing from the sample.

use crate::hash;

/// Elements of SAMPLE, a power of two.
pub const PLACES: u32 = 1 << 16;
/// Places of a group, a cache line.
pub const GROUP: u32 = 8;
/// The highest class: it has all groups.
pub const LAST_CLASS: u32 = (PLACES / GROUP).ilog2();

/// The class of a service with this limit of connections, at least 1: one group if its places suffice, else groups with 3
/// to 6 connections on average, so that at most one connection in twenty finds no place.
#[inline(always)]
pub const fn class(most: u32) -> u32 {
    if most <= GROUP {
        return 0;
    }
    let class = u32::BITS - (most / 6).leading_zeros();
    if class < LAST_CLASS { class } else { LAST_CLASS }
}

/// The first place of the hash's group, for a service of this class.
#[inline(always)]
pub const fn group(service: u32, class: u32, hash: u64) -> u32 {
    let number = (hash >> 32) as u32 & ((1 << class) - 1);
    (hash::source(service) as u32).wrapping_add(number) % (PLACES / GROUP) * GROUP
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_service_has_places_for_all_its_connections_and_no_group_for_many_more_than_it_has() {
        for most in [1, 8, 9, 11, 12, 100, 5000, 49_151] {
            let places = (GROUP << class(most)).min(PLACES);
            assert!(places >= most && (most <= GROUP || places <= 3 * most), "{most}: {places}");
        }
        assert_eq!([class(1), class(8), class(9), class(u32::MAX)], [0, 0, 1, LAST_CLASS]);
    }

    #[test]
    fn a_hash_names_each_group_of_a_service_and_keeps_its_own_when_the_limit_changes() {
        for class in [0, 1, 5, LAST_CLASS] {
            let groups: HashSet<u32> = (0..20 << class).map(|number| group(3, class, hash::source(number))).collect();
            assert!(groups.iter().all(|group| group % GROUP == 0 && *group < PLACES));
            assert_eq!(groups.len(), 1 << class);
        }
        // Who looks for a place of a lower class, and goes on to higher ones, comes to the group of a higher limit's.
        for number in 0..100 {
            let hash = hash::source(number);
            assert!((class(4)..=LAST_CLASS).any(|class| group(3, class, hash) == group(3, self::class(100), hash)));
        }
    }

    #[test]
    fn small_services_have_places_of_their_own() {
        let groups: HashSet<u32> = (0..100).map(|service| group(service, 0, 0)).collect();
        assert!(groups.len() >= 98, "{}", groups.len());
    }
}
