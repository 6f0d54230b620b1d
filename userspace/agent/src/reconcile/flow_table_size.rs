//! Which size the flow table should have: small as long as few connections are open, since a dense table costs packets fewer
//! cache misses than a sparse one, and memory; larger before new connections find no room.
//!
//! Pure. Only connections that both sides speak in count: a flood of first packets, which gives way to everything, makes no
//! table grow.

use std::time::{Duration, Instant};

/// The table becomes so many times as large, or as small.
const STEP: u32 = 4;
/// It grows once one of so many entries is of a live connection: half of it is left for those that come until it has grown.
const GROWS_AT: u64 = 2;
/// It shrinks when at most one of so many has been: then a quarter of the smaller one is taken, half of what makes it grow.
const SHRINKS_AT: u64 = 16;

/// How often it is looked, and acted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Between two looks at a table that may grow.
    pub look: Duration,
    /// Between two looks at one that may only shrink.
    pub glance: Duration,
    /// So long a table has been nearly empty when it shrinks.
    pub quiet: Duration,
    /// Before it is tried again what did not work.
    pub pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            look: Duration::from_secs(1),
            glance: Duration::from_secs(10),
            quiet: Duration::from_secs(3600),
            pause: Duration::from_secs(60),
        }
    }
}

/// What is known of the table.
#[derive(Debug)]
pub(super) struct Sizing {
    pace: Pace,
    least: u32,
    most: u32,
    /// When to look again.
    due: Instant,
    /// Since when it has been nearly empty.
    quiet: Option<Instant>,
}

impl Sizing {
    /// For a table that may have from `least` to `most` entries.
    pub(super) fn new(pace: Pace, (least, most): (u32, u32), now: Instant) -> Self {
        Self { pace, least, most, due: now, quiet: None }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due <= now
    }

    /// The size that the table should have, if another one than it `has`; `live` entries are of connections.
    pub(super) fn look(&mut self, has: u32, live: u64, now: Instant) -> Option<u32> {
        self.due = now + if has < self.most { self.pace.look } else { self.pace.glance };
        if live * SHRINKS_AT > u64::from(has) || has <= self.least {
            self.quiet = None;
        }
        if live * GROWS_AT > u64::from(has) && has < self.most {
            return Some(has.saturating_mul(STEP).min(self.most));
        }
        let smaller = (has / STEP).clamp(self.least, self.most);
        if live * SHRINKS_AT > u64::from(has) || smaller >= has {
            return None;
        }
        let since = *self.quiet.get_or_insert(now);
        (now.saturating_duration_since(since) >= self.pace.quiet).then_some(smaller)
    }

    /// The table has another size: what was seen of it counts no more.
    pub(super) fn changed(&mut self) {
        self.quiet = None;
    }

    /// It could not be given that size.
    pub(super) fn failed(&mut self, now: Instant) {
        self.due = now + self.pace.pause;
    }
}

#[cfg(test)]
mod tests;
