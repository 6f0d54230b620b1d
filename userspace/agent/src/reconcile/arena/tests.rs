//! Ranges of the arena, in random orders.

use proptest::prelude::*;

use super::*;

#[test]
fn a_freed_range_is_given_out_again_only_after_its_rest() {
    let start = Instant::now();
    let mut arena = Arena::new(100);
    assert_eq!(arena.allocate(100, start), Some(0));
    arena.free(0, 100, start);
    assert_eq!(arena.allocate(1, start + QUARANTINE / 2), None);
    assert_eq!(arena.allocate(100, start + QUARANTINE), Some(0));
}

#[test]
fn a_cancelled_range_is_free_at_once() {
    let mut arena = Arena::new(10);
    assert_eq!(arena.allocate(10, Instant::now()), Some(0));
    arena.cancel(0, 10);
    assert_eq!(arena.allocate(10, Instant::now()), Some(0));
}

#[test]
fn what_the_kernel_holds_is_reserved_once_and_only_inside_the_arena() {
    let mut arena = Arena::new(100);
    assert!(arena.reserve(10, 20));
    assert!(!arena.reserve(29, 1), "taken");
    assert!(!arena.reserve(5, 6), "overlaps");
    assert!(!arena.reserve(90, 11), "beyond the end");
    assert!(!arena.reserve(u32::MAX, 2), "overflows");
    assert!(arena.reserve(0, 10) && arena.reserve(30, 70));
    assert_eq!(arena.available(), 0);
    assert!(!arena.reserve(0, 1), "full");
}

proptest! {
    #[test]
    fn ranges_never_overlap_and_everything_comes_back(
        steps in proptest::collection::vec((1_u32..40, any::<bool>(), any::<prop::sample::Index>()), 1..200),
    ) {
        const SIZE: u32 = 256;
        let mut now = Instant::now();
        let mut arena = Arena::new(SIZE);
        let mut held: Vec<(u32, u32)> = Vec::new();
        for (len, give_back, which) in steps {
            now += QUARANTINE;
            if give_back && !held.is_empty() {
                let (base, len) = held.swap_remove(which.index(held.len()));
                arena.free(base, len, now);
            } else if let Some(base) = arena.allocate(len, now) {
                prop_assert!(base + len <= SIZE);
                prop_assert!(held.iter().all(|(b, l)| base + len <= *b || b + l <= base), "{base}+{len} overlaps");
                held.push((base, len));
            }
            let used: u64 = held.iter().map(|(_, len)| u64::from(*len)).sum();
            prop_assert_eq!(arena.available() + used, u64::from(SIZE));
        }
        for (base, len) in held.drain(..) {
            arena.free(base, len, now);
        }
        prop_assert_eq!(arena.allocate(SIZE, now + QUARANTINE), Some(0));
    }
}
