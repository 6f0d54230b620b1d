//! Which ranges of the RINGS map are in use. Pure: time is given, no kernel.
//!
//! A freed range rests for [`QUARANTINE`] before it is given out again: a CPU that read a service's old base a moment
//! ago may still read that ring.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// A program run lasts microseconds, and RCU lets a CPU keep an old trie value no longer than its run.
pub(super) const QUARANTINE: Duration = Duration::from_secs(1);

/// A first-fit allocator of ring elements.
#[derive(Debug)]
pub(super) struct Arena {
    /// Length of each free range by its base; never adjacent, never empty.
    free: BTreeMap<u32, u32>,
    resting: VecDeque<(Instant, u32, u32)>,
}

impl Arena {
    /// An arena of `elements`, all free.
    pub(super) fn new(elements: u32) -> Self {
        let free = if elements == 0 { BTreeMap::new() } else { BTreeMap::from([(0, elements)]) };
        Self { free, resting: VecDeque::new() }
    }

    /// Marks a range as in use, as found in the kernel after a start. False, and nothing changes, when a part of it is
    /// in use already or lies outside.
    pub(super) fn reserve(&mut self, base: u32, len: u32) -> bool {
        if len == 0 {
            return true;
        }
        let Some((&start, &size)) = self.free.range(..=base).next_back() else {
            return false;
        };
        let (Some(end), free_end) = (base.checked_add(len), start + size) else {
            return false;
        };
        if end > free_end {
            return false;
        }
        self.free.remove(&start);
        self.put(start, base - start);
        self.put(end, free_end - end);
        true
    }

    /// The base of a range of `len` elements, or `None` when no free range is that long.
    pub(super) fn allocate(&mut self, len: u32, now: Instant) -> Option<u32> {
        if len == 0 {
            return Some(0);
        }
        self.wake(now);
        let (&base, &size) = self.free.iter().find(|(_, size)| **size >= len)?;
        self.free.remove(&base);
        self.put(base + len, size - len);
        Some(base)
    }

    /// Gives a range back that a program may still read.
    pub(super) fn free(&mut self, base: u32, len: u32, now: Instant) {
        if len > 0 {
            self.resting.push_back((now, base, len));
        }
    }

    /// Gives a range back that no program ever saw.
    pub(super) fn cancel(&mut self, base: u32, len: u32) {
        self.put(base, len);
    }

    /// Elements that can be given out, at once or after their rest.
    pub(super) fn available(&self) -> u64 {
        self.free.values().copied().chain(self.resting.iter().map(|(_, _, len)| *len)).map(u64::from).sum()
    }

    fn wake(&mut self, now: Instant) {
        while let Some((since, base, len)) = self.resting.front().copied() {
            if now.saturating_duration_since(since) < QUARANTINE {
                break;
            }
            self.resting.pop_front();
            self.put(base, len);
        }
    }

    /// Adds a free range, joined with its neighbours.
    fn put(&mut self, mut base: u32, mut len: u32) {
        if len == 0 {
            return;
        }
        if let Some((&before, &size)) = self.free.range(..base).next_back()
            && before + size == base
        {
            self.free.remove(&before);
            base = before;
            len += size;
        }
        if let Some(size) = self.free.remove(&(base + len)) {
            len += size;
        }
        self.free.insert(base, len);
    }
}

#[cfg(test)]
mod tests {
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
}
