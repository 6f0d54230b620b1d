//! Counts connections in a deep pass, and corrects the backends' and services' loads by what was counted.

use std::{collections::HashMap, mem};

use vipgate_abi::load::Load;

use crate::loader::FlowTable;

/// What a deep pass saw of connections.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    /// By number of backend: those that are live, and those that are admitted.
    pub(super) live: Tally,
    pub(super) admitted: Tally,
    /// By number of service: those that it admitted.
    pub(super) services: Tally,
    /// By number of backend, as of the pass's start: what others count is of no use.
    pub(super) generations: Vec<u8>,
}

/// Connections by number.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Loads at the pass's start, those that were not 0.
    pub(super) before: HashMap<u32, u32>,
    /// Connections in the table.
    pub(super) found: HashMap<u32, u32>,
}

impl Tally {
    pub(super) fn start(loads: impl Iterator<Item = u32>) -> Self {
        Self { before: (0..).zip(loads).filter(|(_, load)| *load != 0).collect(), found: HashMap::new() }
    }

    pub(super) fn note(&mut self, number: u32) {
        *self.found.entry(number).or_default() += 1;
    }
}

impl Count {
    pub(super) fn start(table: &FlowTable) -> Self {
        let (backends, services) = (table.backend_loads(), table.service_loads());
        let loads: Vec<Load> = (0..backends.count()).map(|number| backends.get(number)).collect();
        Self {
            live: Tally::start(loads.iter().map(|load| load.live())),
            admitted: Tally::start(loads.iter().map(|load| load.admitted())),
            services: Tally::start((0..services.count()).map(|number| services.get(number))),
            generations: loads.iter().map(|load| load.generation()).collect(),
        }
    }
}

/// Corrects loads that differ from what the table holds. Connections come and go during a pass, so what was found lies
/// somewhere between the loads before and after it; how far it lies outside is a surplus, and what two deep passes in a
/// row find in the same direction is drift.
#[derive(Debug, Default)]
pub(super) struct Drift {
    pub(super) live: HashMap<u32, i64>,
    pub(super) admitted: HashMap<u32, i64>,
    pub(super) services: HashMap<u32, i64>,
}

impl Drift {
    pub(super) fn correct(&mut self, table: &FlowTable, count: &Count) {
        let (backends, services) = (table.backend_loads(), table.service_loads());
        let same = |number: &u32| count.generations.get(*number as usize) == Some(&backends.get(*number).generation());
        let numbers: Vec<u32> = (0..backends.count()).filter(same).collect();
        let live = |number| backends.get(number).live();
        correct(&mut self.live, &numbers, live, &count.live, |number, by| backends.correct(number, by, 0));
        let admitted = |number| backends.get(number).admitted();
        correct(&mut self.admitted, &numbers, admitted, &count.admitted, |number, by| backends.correct(number, 0, by));
        let numbers: Vec<u32> = (0..services.count()).collect();
        let admitted = |number| services.get(number);
        correct(&mut self.services, &numbers, admitted, &count.services, |number, by| {
            let connections = u32::try_from(by.unsigned_abs()).unwrap_or(u32::MAX);
            if by > 0 { services.add(number, connections) } else { services.take(number, connections) }
        });
    }
}

/// Corrects the loads of these numbers by the `last` pass's surpluses and this one's, which stand there afterwards.
fn correct(
    last: &mut HashMap<u32, i64>,
    numbers: &[u32],
    load: impl Fn(u32) -> u32,
    tally: &Tally,
    add: impl Fn(u32, i64),
) {
    let before = mem::take(last);
    let of = |counts: &HashMap<u32, u32>, number| i64::from(counts.get(&number).copied().unwrap_or(0));
    for number in numbers.iter().copied() {
        let (at_start, now) = (of(&tally.before, number), i64::from(load(number)));
        let found = of(&tally.found, number);
        let surplus = found.clamp(at_start.min(now), at_start.max(now)) - found;
        if surplus == 0 {
            continue;
        }
        let (off, left) = settle(before.get(&number).copied().unwrap_or(0), surplus);
        if off != 0 {
            add(number, -off);
        }
        last.insert(number, left);
    }
}

/// What to take off for the last and this pass's surplus, and what surplus is left to be seen again.
pub(super) fn settle(last: i64, now: i64) -> (i64, i64) {
    if last.signum() != now.signum() {
        return (0, now);
    }
    let off = if last.abs() < now.abs() { last } else { now };
    (off, now - off)
}
