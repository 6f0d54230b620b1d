//! How often somebody may try passwords: after some failures in a row, from one address for one account, each further
//! attempt must wait, twice as long every time. Others are not held up by it. Kept in memory only.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Failures in a row that cost nothing.
const FREE: u32 = 5;

/// The wait after one failure more, and the longest one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Failures are forgotten after this time without another one.
const MEMORY: Duration = Duration::from_secs(15 * 60);

/// Of this many addresses and accounts failures are remembered.
const MOST: usize = 10_000;

/// Where the caller is, and what stands for the account that it tries.
pub(super) type Who = (IpAddr, String);

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
pub(super) struct Attempts(Mutex<HashMap<Who, Failures>>);

impl Attempts {
    /// How long this one must wait before it may try again; zero: it may.
    pub(super) fn wait(&self, who: &Who, now: Instant) -> Duration {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(who)
            .map_or(Duration::ZERO, |failures| (failures.last + failures.wait()).saturating_duration_since(now))
    }

    pub(super) fn failed(&self, who: Who, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST && !known.contains_key(&who) {
            known.retain(|_, failures| now.duration_since(failures.last) < MEMORY);
            // Under attack from so many addresses those that failed least are forgotten.
            let least = known.values().map(|failures| failures.count).min();
            if known.len() >= MOST {
                known.retain(|_, failures| Some(failures.count) != least);
            }
        }
        let failures = known.entry(who).or_insert(Failures { count: 0, last: now });
        if now.duration_since(failures.last) >= MEMORY {
            failures.count = 0;
        }
        *failures = Failures { count: failures.count.saturating_add(1), last: now };
    }

    pub(super) fn succeeded(&self, who: &Who) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(who);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn who(host: u32, account: &str) -> Who {
        (Ipv4Addr::from_bits(host).into(), account.to_owned())
    }

    #[test]
    fn failures_in_a_row_make_the_next_attempt_wait_longer_and_longer() {
        let (attempts, start) = (Attempts::default(), Instant::now());
        let wait = || attempts.wait(&who(1, "admin"), start).as_secs();
        let mut waits = Vec::new();
        for _ in 0..14 {
            waits.push(wait());
            attempts.failed(who(1, "admin"), start);
        }
        assert_eq!(waits, [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(attempts.wait(&who(1, "admin"), start + LONGEST_WAIT), Duration::ZERO);
        assert_eq!(attempts.wait(&who(2, "admin"), start), Duration::ZERO, "another address");
        assert_eq!(attempts.wait(&who(1, "other"), start), Duration::ZERO, "another account");
        attempts.succeeded(&who(1, "admin"));
        assert_eq!(wait(), 0);
    }

    #[test]
    fn old_failures_are_forgotten() {
        let (attempts, start) = (Attempts::default(), Instant::now());
        for _ in 0..9 {
            attempts.failed(who(1, "admin"), start);
        }
        attempts.failed(who(1, "admin"), start + MEMORY);
        assert_eq!(attempts.wait(&who(1, "admin"), start + MEMORY), Duration::ZERO);
    }

    #[test]
    fn memory_is_bounded_and_keeps_who_failed_most() {
        let (attempts, start) = (Attempts::default(), Instant::now());
        for _ in 0..9 {
            attempts.failed(who(0, "admin"), start);
        }
        for host in 1..30_000 {
            attempts.failed(who(host, "admin"), start);
            assert!(attempts.0.lock().unwrap().len() <= MOST);
        }
        assert!(attempts.wait(&who(0, "admin"), start) > Duration::ZERO);
    }
}
