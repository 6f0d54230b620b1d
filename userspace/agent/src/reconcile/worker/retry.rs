//! When something that failed is tried again: a VIP, the devices with their hooks, the addresses on them.

use std::time::Duration;

use tokio::time::Instant;

/// First and longest pause before what failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// When something that failed is tried again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retry {
    pub(super) at: Instant,
    pub(super) pause: Duration,
}

impl Retry {
    /// The try after the `last` one: after twice its pause, up to the longest.
    pub(super) fn after(last: Option<Self>) -> Self {
        let pause = last.map_or(RETRY.0, |last| (last.pause * 2).min(RETRY.1));
        Self { at: Instant::now() + pause, pause }
    }

    /// A first try that is due now.
    pub(super) fn now() -> Self {
        Self { at: Instant::now(), pause: RETRY.0 }
    }
}
