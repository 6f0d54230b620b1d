//! Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! section 3.4). Pure: no I/O, no clock.
//!
//! A backend's preference list is seeded by its address and port, never by its number, and backends take their turns
//! in address order: so every router that balances the same pool makes the same table, whatever its database numbered
//! first, and flows survive a move from one router to another.

use std::net::SocketAddrV4;

/// Elements of the table for each backend, at least: bounds the imbalance between backends to about 1 %, as in the
/// paper's section 5.3.
pub const ELEMENTS_PER_BACKEND: u32 = 100;

/// Pools are sized for 16, 64, 256, ... backends. Tables of different sizes have nothing in common, so the smallest
/// prime for each pool would move nearly every source to another backend whenever one came or went; with size classes
/// that happens only when a pool outgrows its class. 10,000 listeners of the first class fit the default arena.
const FIRST_CLASS: u32 = 16;
const CLASS_STEP: u32 = 4;

/// Seeds of the two hashes of a backend. Part of the table's definition: a change moves flows between backends.
const OFFSET_SEED: u64 = 0x6d61_676c_6576_0001;
const SKIP_SEED: u64 = 0x6d61_676c_6576_0002;

/// Size of the table for a pool of `backends`: the smallest prime that gives each backend of its size class at least
/// [`ELEMENTS_PER_BACKEND`] elements; 0 for an empty pool.
pub fn table_size(backends: u32) -> u32 {
    if backends == 0 {
        return 0;
    }
    let mut class = FIRST_CLASS;
    while class < backends {
        class = class.saturating_mul(CLASS_STEP);
    }
    smallest_prime_from(class.saturating_mul(ELEMENTS_PER_BACKEND))
}

/// One of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub address: SocketAddrV4,
    /// Its share of the table, in proportion to the others'. Not 0.
    pub weight: u8,
}

/// The lookup table of a pool: each element is a position in `pool`. Empty for an empty pool.
///
/// Weights: in each round a backend gathers its weight and takes a turn when it has as much as the heaviest one gathers
/// in a round. So those of equal weight take theirs as the paper has it, whatever the weight is.
pub fn table(pool: &[Member]) -> Vec<u32> {
    let size = table_size(u32::try_from(pool.len()).unwrap_or(u32::MAX));
    let heaviest = pool.iter().map(|member| u32::from(member.weight)).max().unwrap_or(0);
    if heaviest == 0 {
        return Vec::new();
    }
    let mut turns: Vec<Preference> =
        pool.iter().zip(0..).map(|(member, at)| Preference::new(*member, at, size)).collect();
    turns.sort_by_key(|preference| preference.backend);

    let mut table = vec![FREE; size as usize];
    let mut left = table.len();
    while left > 0 {
        for preference in &mut turns {
            preference.gathered += preference.weight;
            if preference.gathered < heaviest {
                continue;
            }
            preference.gathered -= heaviest;
            // The size is prime and larger than the skip, so a walk visits every element: a free one is found.
            let mut element = preference.next(size);
            while table[element as usize] != FREE {
                element = preference.next(size);
            }
            table[element as usize] = preference.at;
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    table
}

/// Marks an element that nobody took yet; never a position, as a pool that large has no table.
const FREE: u32 = u32::MAX;

/// Where a backend stands in its walk over the table: its permutation of the elements.
struct Preference {
    backend: SocketAddrV4,
    at: u32,
    weight: u32,
    gathered: u32,
    element: u32,
    skip: u32,
}

impl Preference {
    fn new(Member { address: backend, weight }: Member, at: u32, size: u32) -> Self {
        let name = (u64::from(u32::from(*backend.ip())) << 16) | u64::from(backend.port());
        Self {
            backend,
            at,
            weight: weight.into(),
            gathered: 0,
            element: below(hash(name, OFFSET_SEED), size),
            skip: 1 + below(hash(name, SKIP_SEED), size - 1),
        }
    }

    /// The element it prefers next.
    fn next(&mut self, size: u32) -> u32 {
        let element = self.element;
        // Both are below the size: no division.
        self.element += self.skip;
        if self.element >= size {
            self.element -= size;
        }
        element
    }
}

/// A hash of a backend's name: the output function of SplitMix64 (Steele et al., "Fast Splittable Pseudorandom Number
/// Generators", OOPSLA 2014). Its own, not the packet path's, which may be tuned: this one places flows for ever.
fn hash(name: u64, seed: u64) -> u64 {
    let mut z = name.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn below(hash: u64, size: u32) -> u32 {
    (hash % u64::from(size)) as u32
}

fn smallest_prime_from(least: u32) -> u32 {
    (least.max(2)..=u32::MAX).find(|n| is_prime(*n)).unwrap_or(u32::MAX)
}

fn is_prime(n: u32) -> bool {
    n >= 2 && (2..).take_while(|d| u64::from(*d) * u64::from(*d) <= u64::from(n)).all(|d: u32| !n.is_multiple_of(d))
}

#[cfg(test)]
mod tests;
