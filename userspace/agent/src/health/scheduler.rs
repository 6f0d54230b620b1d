//! Which backends to check, when, and what was found. Pure: instants come from the caller.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use vipgate_state::HealthCheck;

use super::{Finding, Question, Target, slots::Slots};

/// Intervals vary by so many parts of a thousand each way, so that backends whose turns met do not meet for ever.
const JITTER: u64 = 50;

/// All backends that are checked.
#[derive(Debug, Default)]
pub(super) struct Scheduler {
    slots: Slots,
    watched: HashMap<u32, Watched>,
    /// The backends of each VIP, by its uuid.
    vips: HashMap<String, BTreeSet<u32>>,
    /// The turns of backends by time. Turns that were put off or whose backend is gone are passed over: only the one that
    /// `Watched::turn` names counts.
    turns: BinaryHeap<Reverse<(Instant, u32)>>,
    /// What differs from what is stored, as far as is known.
    changed: BTreeMap<u32, bool>,
    /// Checks begun.
    begun: u64,
}

#[derive(Debug)]
struct Watched {
    /// Uuid of its VIP.
    vip: Arc<str>,
    target: Target,
    tally: Tally,
    turn: Turn,
}

/// A backend's next check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    At(Instant),
    /// It was due, and has no slot yet.
    Waiting(Instant),
    /// It is running.
    Running {
        check: u64,
        since: Instant,
    },
}

/// A check to make.
#[derive(Clone, Debug)]
pub(super) struct Check {
    /// Identifies it when it is done.
    id: u64,
    pub(super) number: u32,
    pub(super) vip: Arc<str>,
    /// The account whose slot it has.
    pub(super) account: Arc<str>,
    pub(super) question: Question,
    /// When it was due.
    pub(super) due: Instant,
}

/// What became of a check's finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Noted {
    /// The backend's health, if it changed.
    pub(super) health: Option<bool>,
    /// The backend's next check is the next of all.
    pub(super) is_next: bool,
}

impl Scheduler {
    /// Sets how many checks may run at a time.
    pub(super) fn allow(&mut self, most: usize) {
        self.slots.allow(most);
    }

    /// Makes these a VIP's backends. One that is the same as before keeps what was found, whatever its settings are.
    pub(super) fn watch(&mut self, vip: &str, targets: Vec<Target>, now: Instant) {
        let numbers: BTreeSet<u32> = targets.iter().map(|target| target.number).collect();
        let before = self.vips.remove(vip).unwrap_or_default();
        for gone in before.difference(&numbers) {
            // Another VIP may have got the number before this one gave it back.
            if self.watched.get(gone).is_some_and(|held| *held.vip == *vip) {
                self.watched.remove(gone);
                self.changed.remove(gone);
            }
        }
        let shared: Arc<str> = vip.into();
        for target in targets {
            self.watch_one(&shared, target, now);
        }
        if !numbers.is_empty() {
            self.vips.insert(vip.to_owned(), numbers);
        }
    }

    fn watch_one(&mut self, vip: &Arc<str>, target: Target, now: Instant) {
        let (number, interval) = (target.number, target.check.interval);
        let same = |held: &&mut Watched| {
            held.target.address == target.address && held.target.check.protocol == target.check.protocol
        };
        if let Some(held) = self.watched.get_mut(&number).filter(same) {
            let repaced = held.target.check.interval != interval;
            // What was found and not stored yet, or what a start of its VM made of it: the store shall know.
            if held.tally.healthy != target.healthy {
                self.changed.insert(number, held.tally.healthy);
            }
            held.vip = Arc::clone(vip);
            held.target = target;
            if repaced && matches!(held.turn, Turn::At(_)) {
                self.schedule(number, now + first_pause(number, interval));
            }
            return;
        }
        let tally = Tally { healthy: target.healthy, against: 0 };
        // The stored health holds until enough checks contradict it.
        self.changed.remove(&number);
        self.watched.insert(number, Watched { vip: Arc::clone(vip), target, tally, turn: Turn::At(now) });
        self.schedule(number, now + first_pause(number, interval));
    }

    fn schedule(&mut self, number: u32, at: Instant) {
        if let Some(held) = self.watched.get_mut(&number) {
            held.turn = Turn::At(at);
            self.turns.push(Reverse((at, number)));
        }
    }

    /// When the next check is due that does not wait for a slot already.
    pub(super) fn next(&mut self) -> Option<Instant> {
        while let Some(Reverse((at, number))) = self.turns.peek().copied() {
            if self.watched.get(&number).is_some_and(|held| held.turn == Turn::At(at)) {
                return Some(at);
            }
            self.turns.pop();
        }
        None
    }

    /// A check that is due and has a slot, which must be given back ([`Scheduler::give_back`]); its finding must be noted
    /// ([`Scheduler::done`]) before.
    pub(super) fn begin(&mut self, now: Instant) -> Option<Check> {
        while let Some((account, number)) = self.slots.next_waiting() {
            match self.watched.get(&number).map(|held| held.turn) {
                Some(Turn::Waiting(due)) => return self.start(account, number, due, now),
                // Its backend has gone, or become another.
                _ => drop(self.slots.give_back(&account)),
            }
        }
        while let Some(due) = self.next().filter(|at| *at <= now) {
            let Reverse((_, number)) = self.turns.pop()?;
            let held = self.watched.get_mut(&number)?;
            let account = Arc::clone(&held.target.account);
            if self.slots.take(&account) {
                return self.start(account, number, due, now);
            }
            held.turn = Turn::Waiting(due);
            self.slots.wait(&account, number);
        }
        None
    }

    fn start(&mut self, account: Arc<str>, number: u32, due: Instant, now: Instant) -> Option<Check> {
        let held = self.watched.get_mut(&number)?;
        self.begun += 1;
        held.turn = Turn::Running { check: self.begun, since: now };
        let (vip, question) = (Arc::clone(&held.vip), held.target.question());
        Some(Check { id: self.begun, number, vip, account, question, due })
    }

    /// Gives an account's slot back; `true` if a check waits for one.
    pub(super) fn give_back(&mut self, account: &Arc<str>) -> bool {
        self.slots.give_back(account)
    }

    /// Checks that run.
    pub(super) fn running(&self) -> usize {
        self.slots.taken()
    }

    /// Notes what a check found, and when the next one is. A finding about a backend that has gone or become another
    /// meanwhile is dropped.
    pub(super) fn done(&mut self, check: &Check, finding: &Finding, now: Instant) -> Noted {
        let nothing = Noted { health: None, is_next: false };
        let Some(held) = self.watched.get_mut(&check.number) else { return nothing };
        let since = match held.turn {
            Turn::Running { check: id, since } if id == check.id => since,
            _ => return nothing,
        };
        let changed = held.tally.note(finding, &held.target.check);
        if changed {
            self.changed.insert(check.number, held.tally.healthy);
        }
        let healthy = held.tally.healthy;
        let next = now.max(since + pause(check.number, held.target.check.interval, check.id));
        self.schedule(check.number, next);
        Noted { health: changed.then_some(healthy), is_next: self.next() == Some(next) }
    }

    pub(super) fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    /// What is to be stored: backends and their health.
    pub(super) fn take_changes(&mut self) -> BTreeMap<u32, bool> {
        std::mem::take(&mut self.changed)
    }

    /// Gives back what could not be stored, unless something newer is known.
    pub(super) fn return_changes(&mut self, changes: BTreeMap<u32, bool>) {
        for (number, healthy) in changes {
            if self.watched.contains_key(&number) {
                self.changed.entry(number).or_insert(healthy);
            }
        }
    }

    /// Backends, and the unhealthy ones among them.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.watched.len(), self.watched.values().filter(|held| !held.tally.healthy).count())
    }
}

/// A backend's health and the results in a row that speak against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tally {
    healthy: bool,
    against: u32,
}

impl Tally {
    /// `true` if its health changed.
    fn note(&mut self, finding: &Finding, check: &HealthCheck) -> bool {
        let passed = match finding {
            Finding::Passed => true,
            Finding::Failed(_) => false,
            Finding::Inconclusive(_) => return false,
        };
        if passed == self.healthy {
            self.against = 0;
            return false;
        }
        self.against = self.against.saturating_add(1);
        let enough = if self.healthy { check.unhealthy_threshold } else { check.healthy_threshold };
        if self.against < enough {
            return false;
        }
        *self = Self { healthy: passed, against: 0 };
        true
    }
}

/// Until a backend's first check: anywhere in the interval, so that backends that came together are checked in turn.
fn first_pause(number: u32, interval: u32) -> Duration {
    thousandths(interval, scatter(u64::from(number)) % 1000)
}

/// From one check to the next.
fn pause(number: u32, interval: u32, check: u64) -> Duration {
    let jitter = scatter((u64::from(number) << 32) ^ check) % (2 * JITTER + 1);
    thousandths(interval, 1000 - JITTER + jitter)
}

fn thousandths(seconds: u32, parts: u64) -> Duration {
    Duration::from_millis(u64::from(seconds) * parts)
}

/// The output function of SplitMix64: evenly spread for numbers in a row.
const fn scatter(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
