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
mod tests;
