//! Keeps a message from flooding the log: the first one is logged at once, the next one [`PAUSE`] later at the earliest. Pure:
//! instants come from the caller.

use std::time::{Duration, Instant};

/// Between two log lines of the same kind.
const PAUSE: Duration = Duration::from_secs(60);

/// When a message was last logged.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LogPacer(Option<Instant>);

impl LogPacer {
    /// `true` if the message may be logged now; then the pause begins anew.
    pub(crate) fn may_log(&mut self, now: Instant) -> bool {
        let may = self.0.is_none_or(|at| now.saturating_duration_since(at) >= PAUSE);
        if may {
            self.0 = Some(now);
        }
        may
    }
}
