//! Limits failed log-ins: after some failures in a row from one address for one account, each further attempt must wait,
//! twice as long every time. Other addresses and accounts do not wait. The state is in memory only.
//!
//! `governor` can't express this: its GCRA lets attempts through at a constant rate, and has neither a wait that grows with
//! each failure, nor a reset on success, nor a check that does not count as an attempt. Its table of keys has no bound.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Failures in a row without a wait.
const FREE: u32 = 5;

/// The wait after one more failure, and the longest wait.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Failures are forgotten after this time without a further one.
const FORGET_AFTER: Duration = Duration::from_secs(15 * 60);

/// The most pairs of address and account with failures that are kept.
const MAX_ENTRIES: usize = 10_000;

/// The address of the caller, and a digest of the name of the account that it tries.
pub(super) type Origin = (IpAddr, String);

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last: Instant,
}

impl Failures {
    fn wait(self) -> Duration {
        match self.count.checked_sub(FREE) {
            None => Duration::ZERO,
            Some(more) => FIRST_WAIT.saturating_mul(1 << more.min(6)).min(LONGEST_WAIT),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<HashMap<Origin, Failures>>);

impl Attempts {
    /// How long the origin must wait before its next attempt; zero if it need not.
    pub(super) fn wait(&self, origin: &Origin, now: Instant) -> Duration {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(origin)
            .map_or(Duration::ZERO, |failures| (failures.last + failures.wait()).saturating_duration_since(now))
    }

    pub(super) fn failed(&self, origin: Origin, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_ENTRIES && !known.contains_key(&origin) {
            known.retain(|_, failures| now.duration_since(failures.last) < FORGET_AFTER);
            // Under attack from so many addresses, those with the fewest failures are dropped.
            let least = known.values().map(|failures| failures.count).min();
            if known.len() >= MAX_ENTRIES {
                known.retain(|_, failures| Some(failures.count) != least);
            }
        }
        let failures = known.entry(origin).or_insert(Failures { count: 0, last: now });
        if now.duration_since(failures.last) >= FORGET_AFTER {
            failures.count = 0;
        }
        *failures = Failures { count: failures.count.saturating_add(1), last: now };
    }

    pub(super) fn succeeded(&self, origin: &Origin) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(origin);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn origin(host: u32, account: &str) -> Origin {
        (Ipv4Addr::from_bits(host).into(), account.to_owned())
    }

    #[test]
    fn failures_in_a_row_make_the_next_attempt_wait_longer_and_longer() {
        let (attempts, start) = (Attempts::default(), Instant::now());
        let wait = || attempts.wait(&origin(1, "admin"), start).as_secs();
        let mut waits = Vec::new();
        for _ in 0..14 {
            waits.push(wait());
            attempts.failed(origin(1, "admin"), start);
        }
        assert_eq!(waits, [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(attempts.wait(&origin(1, "admin"), start + LONGEST_WAIT), Duration::ZERO);
        assert_eq!(attempts.wait(&origin(2, "admin"), start), Duration::ZERO, "another address");
        assert_eq!(attempts.wait(&origin(1, "other"), start), Duration::ZERO, "another account");
        attempts.succeeded(&origin(1, "admin"));
        assert_eq!(wait(), 0);
    }

    #[test]
    fn old_failures_are_forgotten() {
        let (attempts, start) = (Attempts::default(), Instant::now());
        for _ in 0..9 {
            attempts.failed(origin(1, "admin"), start);
        }
        attempts.failed(origin(1, "admin"), start + FORGET_AFTER);
        assert_eq!(attempts.wait(&origin(1, "admin"), start + FORGET_AFTER), Duration::ZERO);
    }

    #[test]
    fn memory_is_bounded_and_keeps_who_failed_most() {
        let (attempts, start) = (Attempts::default(), Instant::now());
        for _ in 0..9 {
            attempts.failed(origin(0, "admin"), start);
        }
        for host in 1..30_000 {
            attempts.failed(origin(host, "admin"), start);
            assert!(attempts.0.lock().unwrap().len() <= MAX_ENTRIES);
        }
        assert!(attempts.wait(&origin(0, "admin"), start) > Duration::ZERO);
    }
}
