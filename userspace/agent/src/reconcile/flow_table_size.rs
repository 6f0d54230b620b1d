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
mod tests {
    use super::*;

    const LEAST: u32 = 1 << 16;
    const MOST: u32 = 1 << 20;
    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);

    fn sizing() -> (Sizing, Instant) {
        let now = Instant::now();
        (Sizing::new(Pace::default(), (LEAST, MOST), now), now)
    }

    #[test]
    fn a_table_grows_fourfold_once_half_of_it_is_taken_up_to_the_largest() {
        let (mut sizing, now) = sizing();
        let mut look = |has: u32, live: u32| sizing.look(has, live.into(), now);
        assert_eq!(look(LEAST, LEAST / 2), None);
        assert_eq!(look(LEAST, LEAST / 2 + 1), Some(LEAST * 4));
        assert_eq!(look(1 << 19, 1 << 19), Some(MOST));
        assert_eq!(look(MOST, MOST), None);
    }

    #[test]
    fn a_table_shrinks_when_it_has_been_nearly_empty_for_an_hour_and_not_before() {
        let (mut sizing, start) = sizing();
        let few = u64::from(MOST) / 16;
        assert_eq!(sizing.look(MOST, few, start), None);
        assert_eq!(sizing.look(MOST, few, start + HOUR - SECOND), None);
        assert_eq!(sizing.look(MOST, few + 1, start + HOUR), None, "an hour that was not quiet");
        assert_eq!(sizing.look(MOST, few, start + HOUR + SECOND), None);
        assert_eq!(sizing.look(MOST, few, start + 2 * HOUR + SECOND), Some(MOST / 4));
        sizing.changed();
        assert_eq!(sizing.look(MOST / 4, 0, start + 2 * HOUR + SECOND), None, "another hour for another step");
        assert_eq!(sizing.look(MOST / 4, 0, start + 3 * HOUR + SECOND), Some(LEAST));
        sizing.changed();
        assert_eq!(sizing.look(LEAST, 0, start + 5 * HOUR), None);
    }

    #[test]
    fn a_table_that_shrank_does_not_grow_by_what_it_held() {
        let (mut sizing, now) = sizing();
        assert_eq!(sizing.look(MOST / 4, u64::from(MOST) / 16, now), None);
    }

    #[test]
    fn a_table_of_before_that_is_larger_than_it_may_be_now_shrinks_to_what_it_may_be() {
        let (mut sizing, now) = sizing();
        assert_eq!(sizing.look(MOST * 8, 1, now), None);
        assert_eq!(sizing.look(MOST * 8, 1, now + HOUR), Some(MOST));
        let mut fixed = Sizing::new(Pace::default(), (4096, 4096), now);
        assert_eq!(fixed.look(4096, 4096, now), None);
        assert_eq!(fixed.look(4096, 0, now + 2 * HOUR), None);
    }

    #[test]
    fn one_that_may_grow_is_looked_at_each_second_and_a_failure_is_not_tried_again_at_once() {
        let (mut sizing, now) = sizing();
        assert!(sizing.is_due(now));
        sizing.look(LEAST, u64::from(LEAST), now);
        assert!(!sizing.is_due(now) && sizing.is_due(now + SECOND));
        sizing.failed(now);
        assert!(!sizing.is_due(now + SECOND) && sizing.is_due(now + 60 * SECOND));
        sizing.look(MOST, 0, now);
        assert!(!sizing.is_due(now + SECOND) && sizing.is_due(now + 10 * SECOND));
    }
}
