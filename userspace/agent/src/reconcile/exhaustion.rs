//! What ran out and cost connections is told in the log: at once, and then at most once in a while.

use std::time::{Duration, Instant};

use tracing::warn;
use vipgate_abi::counters::Reason;

use crate::loader::{LoadError, Plane, Reasons, TableError};

/// How often the same is told at most.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Watches the counters of what ran out.
#[derive(Debug)]
pub(super) struct Exhaustion {
    reasons: Reasons,
    watched: [(Reason, Pacer); 2],
}

impl Exhaustion {
    /// What was counted before is not told.
    pub(super) fn start(plane: &Plane) -> Result<Self, LoadError> {
        let reasons = plane.reasons()?;
        let watch = |reason| Ok::<_, TableError>((reason, Pacer { count: reasons.count(reason)?, told: None }));
        let watched = [watch(Reason::TableFull)?, watch(Reason::NoFreePort)?];
        Ok(Self { reasons, watched })
    }

    /// Tells what there is to tell; the flow table may have up to `most` entries.
    pub(super) fn tell(&mut self, most: u32, now: Instant) -> Result<(), TableError> {
        for (reason, pacer) in &mut self.watched {
            let Some(new) = pacer.look(self.reasons.count(*reason)?, now) else { continue };
            match reason {
                Reason::TableFull => warn!(
                    "{new} packets of new connections found no room in the flow table and were dropped: it may have \
                     {most} entries, two a connection; raise datapath.flows"
                ),
                _ => warn!(
                    "{new} packets of guests found no free port of their way out towards their destination and were \
                     dropped; `vipgate flows --direction out --sort vip` shows who has the ports"
                ),
            }
        }
        Ok(())
    }
}

/// A counter, and what of it was told.
#[derive(Clone, Copy, Debug)]
struct Pacer {
    /// As of what was told last.
    count: u64,
    told: Option<Instant>,
}

impl Pacer {
    /// How much is to be told of a counter that is at `count` now.
    fn look(&mut self, count: u64, now: Instant) -> Option<u64> {
        let new = count.saturating_sub(self.count);
        if new == 0 || self.told.is_some_and(|told| now.saturating_duration_since(told) < TELL_EVERY) {
            return None;
        }
        *self = Self { count, told: Some(now) };
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_what_follows_together_a_minute_later() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pacer = Pacer { count: 7, told: None };
        assert_eq!(pacer.look(7, start), None, "nothing of before");
        assert_eq!(pacer.look(8, start), Some(1));
        assert_eq!(pacer.look(20, at(59)), None);
        assert_eq!(pacer.look(30, at(60)), Some(22));
        assert_eq!(pacer.look(30, at(120)), None, "nothing new");
        assert_eq!(pacer.look(31, at(121)), Some(1));
    }
}
