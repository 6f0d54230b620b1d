//! Logs what ran out and cost connections: at once, and then once a minute at most.

use std::time::Instant;

use tracing::warn;
use vipgate_abi::counters::Reason;

use crate::{
    loader::{LoadError, Plane, Reasons, TableError},
    log_pacing::LogPacer,
};

/// Watches the counters of what ran out.
#[derive(Debug)]
pub(super) struct Exhaustion {
    reasons: Reasons,
    watched: [(Reason, Watched); 2],
}

impl Exhaustion {
    /// What was counted before is not logged.
    pub(super) fn start(plane: &Plane) -> Result<Self, LoadError> {
        let reasons = plane.reasons()?;
        let watch = |reason| {
            Ok::<_, TableError>((reason, Watched { count: reasons.count(reason)?, pacer: LogPacer::default() }))
        };
        let watched = [watch(Reason::TableFull)?, watch(Reason::NoFreePort)?];
        Ok(Self { reasons, watched })
    }

    /// Logs what is new; the flow table may have up to `most` entries.
    pub(super) fn log(&mut self, most: u32, now: Instant) -> Result<(), TableError> {
        for (reason, counter) in &mut self.watched {
            let Some(new) = counter.grown(self.reasons.count(*reason)?, now) else { continue };
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

/// A counter whose growth is logged.
#[derive(Clone, Copy, Debug)]
struct Watched {
    /// Its value when its growth was last logged.
    count: u64,
    pacer: LogPacer,
}

impl Watched {
    /// By how much the counter, which is at `count` now, has grown since it was last logged; `None` if there is nothing to log yet.
    fn grown(&mut self, count: u64, now: Instant) -> Option<u64> {
        let new = count.saturating_sub(self.count);
        if new == 0 || !self.pacer.may_log(now) {
            return None;
        }
        self.count = count;
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_is_logged_at_once_and_what_follows_together_a_minute_later() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut counter = Watched { count: 7, pacer: LogPacer::default() };
        assert_eq!(counter.grown(7, start), None, "nothing of before");
        assert_eq!(counter.grown(8, start), Some(1));
        assert_eq!(counter.grown(20, at(59)), None);
        assert_eq!(counter.grown(30, at(60)), Some(22));
        assert_eq!(counter.grown(30, at(120)), None, "nothing new");
        assert_eq!(counter.grown(31, at(121)), Some(1));
    }
}
